"""Classifier: loads what dinojax.finetune has trained, and names images.

from dinojax import classifier
model = classifier.load("runs/pets")
names, probabilities = model.predict(images)  # of uint8 RGB [B, H, W, 3]

Of --task=labels, names[i] are all classes of image i, perhaps none. Of
--task=segmentation, model.segment(images) gives the class of each pixel.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dinojax import backbone, errors, export
from dinojax.finetuning import patch_head, tuning
from dinojax.weights import formats, runs


@dataclasses.dataclass(frozen=True)
class Classifier:
  """A backbone with a linear head, compiled once for each size of a batch.

  backbone: with merged weights; its `sizes` are those of the images that it was
  evaluated on. head: of `tuning.State.head`. class_names: by label. columns:
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
    self._check(images, segments=False)
    network = tuning.Network(self.backbone.module, self.task, self.columns)
    probabilities = _probabilities(network, self.backbone.params, self.head, images)
    found = np.asarray(probabilities)
    if self.task == "labels":
      names = np.array(self.class_names, object)
      return [tuple(names[row > 0.5]) for row in found], found
    return [self.class_names[i] for i in found.argmax(-1)], found

  def segment(self, images: jax.Array) -> np.ndarray:
    """The class of each pixel, of --task=segmentation.

    Args:
      images: as of `predict`.

    Returns:
      uint8 [B, H, W], numbers of `class_names`.

    Raises:
      UserError: as of `predict`.
    """
    self._check(images, segments=True)
    network = tuning.Network(self.backbone.module, self.task, self.columns)
    return np.asarray(_label_maps(network, self.backbone.params, self.head, images))

  def _check(self, images, *, segments) -> None:
    if segments != (self.task == "segmentation"):
      name = "predict" if segments else "segment"
      raise errors.UserError(f"it was trained with --task={self.task}; call .{name}()")
    backbone.check_images(images, self.backbone.module)

  def program(self) -> export.Program:
    """The program of `predict`'s probabilities, or of `segment`, for `export.write`."""
    module = export.exportable(self.backbone.module)
    network = tuning.Network(module, self.task, self.columns)
    name, compute = "probabilities", _probabilities
    if self.task == "segmentation":
      name, compute = "label_maps", _label_maps

    def apply(images):
      return (compute(network, self.backbone.params, self.head, images),)

    return export.Program(apply, (name,), module)


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


@functools.partial(jax.jit, static_argnums=0)
def _probabilities(
  network: tuning.Network, params: Any, head: Any, images: jax.Array
) -> jax.Array:
  scores = network.scores(params, head, images)
  several = network.task == "labels"
  return jax.nn.sigmoid(scores) if several else jax.nn.softmax(scores)


@functools.partial(jax.jit, static_argnums=0)
def _label_maps(
  network: tuning.Network, params: Any, head: Any, images: jax.Array
) -> jax.Array:
  sides, patch = images.shape[1:3], network.module.patch_size
  scores = network.scores(params, head, images)
  return patch_head.label_maps(scores, tuple(x // patch for x in sides), sides)
