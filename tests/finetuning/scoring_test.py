"""Accuracies agree with NumPy and scikit-learn, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from sklearn import metrics

from dinojax import errors, sharding
from dinojax.data import label_maps, label_sets
from dinojax.finetuning import scoring


@pytest.fixture(scope="module", autouse=True)
def parsed_flags():
  flags.FLAGS.mark_as_parsed()  # Grain's


def test_counts_agree_with_numpy_and_labels_beyond_the_classes_are_wrong():
  rng = np.random.default_rng(0)
  scores = rng.integers(0, 4, size=(40, 7)).astype(np.float32)  # with many ties
  scores[3] = np.nan
  labels = rng.integers(-1, 9, size=40)
  order = np.argsort(-scores, axis=1, kind="stable")
  known = labels >= 0
  sound = known & np.isfinite(scores).all(1)
  wanted = [
    sum(
      label in row[:k] for label, row in zip(labels[sound], order[sound], strict=True)
    )
    for k in (1, 5)
  ]
  found = scoring.count_right(jnp.asarray(scores), jnp.asarray(labels))
  assert list(map(int, found)) == [*wanted, known.sum()]


class Greys:
  """11 images of one grey each; the sixth is damaged, the last has no label."""

  where, class_names, labels = '--test="greys"', tuple("abcdef"), None

  def __len__(self):
    return 11

  def __getitem__(self, index):
    if index == 5:
      raise ValueError("damaged")
    label = -1 if index == 10 else index // 2
    return {"image": np.full((8, 8, 3), 40 * (index % 6), np.uint8), "label": label}

  def name(self, index):
    return f"grey {index}"


@pytest.mark.parametrize("shape", [(1, 1), (2, 4)])
def test_accuracy_is_the_share_of_readable_labelled_images_on_any_mesh(shape):
  devices = jax.devices()[: shape[0] * shape[1]]
  mesh = sharding.make_mesh(data=shape[0], fsdp=shape[1], devices=devices)

  @jax.jit
  def predict(images):  # class i is the grey level 40 * i
    grey = images[:, 0, 0, 0].astype(jnp.float32)
    return -jnp.abs(grey[:, None] - 40 * jnp.arange(6))

  with jax.set_mesh(mesh):
    found = scoring.accuracy(
      Greys(),
      predict,
      mesh=mesh,
      batch_size=8,
      resize=8,
      crop=8,
      workers=0,
      description="",
    )
  # Labels 0 0 1 1 2 x 3 3 4 4, greys 0 1 2 3 4 x 0 1 2 3: the first alone is right.
  assert found["top1"] == pytest.approx(1 / 9)
  assert found["top5"] == pytest.approx(1)


def test_a_source_without_labels_is_an_error():
  class Unlabelled(Greys):
    def __getitem__(self, index):
      return {"image": np.zeros((8, 8, 3), np.uint8), "label": -1}

  mesh = sharding.make_mesh(data=1, fsdp=1, devices=jax.devices()[:1])
  sizes = dict(batch_size=11, resize=8, crop=8, workers=0, description="")
  with pytest.raises(errors.UserError, match="none of its 11 images"):
    scoring.accuracy(Unlabelled(), lambda x: jnp.zeros((11, 6)), mesh=mesh, **sizes)


@pytest.mark.parametrize("levels", [3, 1_000_000])
def test_average_precision_is_that_of_scikit_learn_with_ties_and_without(levels):
  rng = np.random.default_rng(levels)
  for _ in range(20):
    scores = rng.integers(0, levels, 30) / levels
    truth = rng.random(30) < 0.3
    truth[7] = True
    wanted = metrics.average_precision_score(truth, scores)
    assert scoring.average_precision(scores, truth) == pytest.approx(wanted)


class Several(Greys):
  """The same images with 0 to 3 of 6 classes each; no image has the last one."""

  labels = np.zeros(11, np.int32)
  fingerprint, notes = "f", ()
  label_sets = ((0,), (), (0, 1), (1,), (2, 3, 4), (), (3,), (4, 0), (4,), (), (2,))


@pytest.mark.parametrize("shape", [(1, 1), (2, 4)])
def test_mean_average_precision_and_f1_are_those_of_scikit_learn(shape):
  devices = jax.devices()[: shape[0] * shape[1]]
  mesh = sharding.make_mesh(data=shape[0], fsdp=shape[1], devices=devices)
  rng = np.random.default_rng(0)
  table = jnp.asarray(rng.normal(size=(6, 6)))

  @jax.jit
  def predict(images):  # scores by the grey level
    return table[images[:, 0, 0, 0] // 40]

  source = label_sets.LabelSets(Several(), tuple("abcdef"))
  how = dict(mesh=mesh, batch_size=8, resize=8, crop=8, workers=0, description="")
  with jax.set_mesh(mesh):
    found = scoring.precision(source, predict, **how)
  readable = [i for i in range(11) if i != 5]
  truth = np.zeros((10, 6))
  for row, i in enumerate(readable):
    truth[row, list(Several.label_sets[i])] = 1
  scores = np.asarray(table)[[i % 6 for i in readable]]
  wanted = metrics.average_precision_score(truth[:, :5], scores[:, :5])
  assert found["map"] == pytest.approx(wanted)
  wanted = metrics.f1_score(truth, scores > 0, average="micro")
  assert found["f1"] == pytest.approx(wanted)


class Quarters(Greys):
  """Images of four patches, of the classes 0 to 3; the fifth has no label."""

  map_classes = tuple("abcd")

  def __len__(self):
    return 5

  def __getitem__(self, index):
    classes = np.roll(np.arange(4), index).reshape(2, 2).astype(np.uint8)
    image = np.repeat(np.kron(40 * classes, np.ones((4, 4), np.uint8))[..., None], 3, 2)
    label_map = np.kron(classes, np.ones((4, 4), np.uint8))
    if index == 4:
      label_map[:] = label_maps.IGNORE
    return {"image": image, "label": -1, "label_map": label_map}


def test_mean_iou_is_that_of_the_pixels_of_the_largest_score():
  mesh = sharding.make_mesh(data=2, fsdp=4, devices=jax.devices())

  @jax.jit
  def predict(images):  # the class of each patch, but for 3, which is taken for 2
    classes = jnp.minimum(images[:, ::4, ::4, 0].reshape(-1, 4) // 40, 2)
    return 10 * jax.nn.one_hot(classes, 4)

  how = dict(mesh=mesh, batch_size=8, resize=8, crop=8, workers=0, description="")
  named = dict(class_names=tuple("abcd"), patch_size=4)
  with jax.set_mesh(mesh):
    found = scoring.evaluate("segmentation", Quarters(), predict, **named, **how)
  # Bilinear scores move the borders: of each class at most a few pixels differ.
  assert found["miou"] == pytest.approx((1 + 1 + 1 / 2 + 0) / 4, abs=0.1)
  assert found["accuracy"] == pytest.approx(3 / 4, abs=0.05)
