"""Top-1 and top-5 agree with NumPy, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from dinojax import errors, sharding
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
