"""Classifier: loads what dinojax.finetune has trained, and names images.

from dinojax import classifier
model = classifier.load("runs/pets")
names, probabilities = model.predict(images)  # of uint8 RGB [B, H, W, 3]

Of --task=labels, names[i] are all classes of image i, perhaps none.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dinojax import backbone, errors, export
from dinojax.finetuning import tuning
from dinojax.weights import formats, runs


@dataclasses.dataclass(frozen=True)
class Classifier:
  """A backbone with a linear head, compiled once for each size of a batch.

  backbone: with merged weights; its `sizes` are those of the images that it was
  evaluated on. head: {"kernel": [F, C], "bias": [C]}. class_names: by label. columns:
  its image feature, of `backbone.columns`. task: one of `tasks.TASKS`.
  """

  backbone: backbone.Backbone
  head: dict[str, jax.Array]
  class_names: tuple[str, ...]
  columns: tuple[tuple[str, int], ...]
  task: str

  def predict(self, images: jax.Array) -> tuple[list, np.ndarray]:
    """The class or classes of each image, and the probabilities of all classes.

    Args:
      images: uint8 RGB [B, H, W, 3], or of the backbone's layout, with sides of
        `backbone.sizes["crop"]` pixels or other multiples of the patch size.

    Returns:
      B names, or, of the task "labels", B tuples of names of a probability above 0.5;
      and float32 [B, C], columns as `class_names`.

    Raises:
      UserError: another type or shape.
    """
    module = self.backbone.module
    backbone.check_images(images, module)
    params = self.backbone.params
    probabilities = _probabilities(
      module, self.columns, self.task, params, self.head, images
    )
    found = np.asarray(probabilities)
    if self.task == "labels":
      names = np.array(self.class_names, object)
      return [tuple(names[row > 0.5]) for row in found], found
    return [self.class_names[i] for i in found.argmax(-1)], found

  def program(self) -> export.Program:
    """The program of `predict`'s probabilities, for `export.write`."""
    module = export.exportable(self.backbone.module)

    def probabilities(images):
      params = self.backbone.params
      found = _probabilities(module, self.columns, self.task, params, self.head, images)
      return (found,)

    return export.Program(probabilities, ("probabilities",), module)


def load(path: str, *, step: int | None = None, dtype: str = "float32") -> Classifier:
  """The classifier in the workdir of a fine-tuning, on the default device.

  Args:
    path: --workdir of dinojax.finetune.
    step: of those that its table lists; None: the last.
    dtype: of matrix products, "float32" or "bfloat16".

  Raises:
    UserError: none is there, or it cannot be read.
  """
  where = pathlib.Path(path).expanduser()
  found = runs.locate(where, step)
  fields = runs.read_record(runs.find(where, step))["config"] if found else {}
  if not isinstance(about := fields.get("finetune"), Mapping):
    raise errors.UserError(
      f"{path} holds no classifier; give --workdir of python -m dinojax.finetune"
    )
  weights = formats.read(str(runs.find(where, found[1])), parts=("backbone", "head"))
  loaded = dataclasses.replace(backbone.of_weights(weights, dtype=dtype), run=found)
  return Classifier(
    loaded,
    jax.tree.map(jax.numpy.asarray, weights.params["head"]),
    tuple(about["class_names"]),
    backbone.columns(about["feature"], about["layers"]),
    (tuning.ADDED | about)["task"],
  )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _probabilities(
  module: Any, columns: tuple, task: str, params: Any, head: Any, images: jax.Array
) -> jax.Array:
  scores = tuning.logits(module, columns, params, head, images)
  return jax.nn.sigmoid(scores) if task == "labels" else jax.nn.softmax(scores)
