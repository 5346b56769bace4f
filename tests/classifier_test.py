"""A classifier is read from a fine-tuning's checkpoint, and names images."""

import jax
import numpy as np
import onnxruntime
import pytest

from dinojax import backbone, checkpoint, classifier, errors, export
from dinojax.weights import model

ARCHITECTURE = model.DEFAULTS | dict(
  patch_size=4, pos_grid=4, width=16, depth=2, heads=2, ffn="mlp", registers=0
)
ARCHITECTURE |= dict(pool="cls")
NAMES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """Checkpoints 10 and 20 of random weights, whose features are of two blocks."""
  folder = tmp_path_factory.mktemp("run")
  saver = checkpoint.Checkpoints(str(folder), every=1, keep_last=2, keep_best=0)
  for step in (10, 20):
    rng = np.random.default_rng(step)
    shapes = {
      "backbone": model.shapes(ARCHITECTURE),
      "head": {"kernel": np.zeros((2 * 2 * 16, 3)), "bias": np.zeros(3)},
    }
    fill = lambda x, rng=rng: np.float32(0.3 * rng.normal(size=x.shape))  # noqa: E731
    record = {
      "step": step,
      "data_fingerprint": ["f"],
      "config": {
        "backbone": ARCHITECTURE,
        "knn": {"resize": 18, "crop": 16},
        "finetune": {"feature": "cls+gap", "layers": 2, "class_names": list(NAMES)},
      },
    }
    teacher = jax.device_put(jax.tree.map(fill, shapes))
    saver.save(step, {"teacher": teacher}, record)
  saver.close()
  return folder


def images(count=5):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (count, 16, 16, 3), np.uint8)


def test_probabilities_are_the_softmax_of_the_head_on_the_image_feature(workdir):
  made = classifier.load(str(workdir))
  assert made.class_names == NAMES
  assert made.backbone.sizes == {"resize": 18, "crop": 16}
  names, found = made.predict(images())
  loaded = backbone.load(str(workdir))
  columns = backbone.columns("cls+gap", 2)
  see = jax.jit(backbone.image_columns, static_argnums=(0, 3))
  features = see(loaded.module, loaded.params, images(), columns)
  kernel, bias = (np.float64(made.head[name]) for name in ("kernel", "bias"))
  scores = np.exp(np.float64(features) @ kernel + bias)
  wanted = scores / scores.sum(1, keepdims=True)
  np.testing.assert_allclose(found, wanted, 1e-4, 1e-5)
  assert names == [NAMES[i] for i in wanted.argmax(1)]


def test_the_last_step_is_loaded_unless_another_is_named(workdir):
  last, named, first = (
    classifier.load(str(workdir), step=step) for step in (None, 20, 10)
  )
  assert last.backbone.run == (str(workdir), 20)
  np.testing.assert_array_equal(last.head["kernel"], named.head["kernel"])
  assert (np.asarray(first.head["kernel"]) != last.head["kernel"]).any()


def test_what_is_no_classifier_is_refused_in_one_line(workdir, tmp_path):
  with pytest.raises(errors.UserError, match="holds no classifier; give --workdir"):
    classifier.load(str(tmp_path))
  with pytest.raises(errors.UserError, match="has no checkpoint of step 11"):
    classifier.load(str(workdir), step=11)
  with pytest.raises(errors.UserError, match="give uint8, 0 to 255"):
    classifier.load(str(workdir)).predict(np.zeros((1, 16, 16, 3)))


def test_an_exported_classifier_gives_the_same_probabilities_of_any_batch(
  workdir, tmp_path
):
  made = classifier.load(str(workdir))
  for ending in ("stablehlo", "onnx"):
    export.write(made.program(), 16, tmp_path / f"pets.{ending}")
  program = jax.export.deserialize(
    bytearray((tmp_path / "pets.stablehlo").read_bytes())
  )
  session = onnxruntime.InferenceSession(tmp_path / "pets.onnx")
  for count in (1, 5):
    _, wanted = made.predict(images(count))
    (found,) = program.call(images(count))
    np.testing.assert_allclose(found, wanted, 1e-5, 1e-6)
    (found,) = session.run(["probabilities"], {"images": images(count)})
    np.testing.assert_allclose(found, wanted, 1e-4, 1e-5)
