"""A frozen backbone as a program of its own: StableHLO by jax.export, and ONNX.

Either takes uint8 images [B, size, size, 3] of any B, holds its weights, and returns
(image feature [B, D], CLS token [B, D], patch tokens [B, N, D]) in float32.
"""

import dataclasses
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import export

from dinojax import backbone, errors

PLATFORMS = ("cpu", "cuda", "tpu")


def stablehlo(model: backbone.Backbone, size: int) -> export.Exported:
  """For `jax.export`: `.serialize()` makes bytes of it, for every platform.

  `jax.export.deserialize(bytes).call(images)` runs them, without this package.

  Raises:
    UserError: size is no multiple of the patch size.
  """
  features, images = _program(model, size)
  return export.export(jax.jit(features), platforms=PLATFORMS)(images)


def onnx(model: backbone.Backbone, size: int, path: str) -> None:
  """Writes an ONNX file, by jax2onnx.

  Raises:
    UserError: as above, or jax2onnx is not installed.
  """
  features, images = _program(model, size)
  # Traced here: jax2onnx replaces functions of jax that flax's scan calls with shapes.
  traced = jax.make_jaxpr(features)(images)
  try:
    import jax2onnx
  except ModuleNotFoundError as error:
    raise errors.UserError(
      f"{path} needs jax2onnx: pip install 'dinojax[onnx]'"
    ) from error
  jax2onnx.to_onnx(
    lambda x: tuple(jax.core.eval_jaxpr(traced.jaxpr, traced.consts, x)),
    [images],
    return_mode="file",
    output_path=path,
  )


def write(model: backbone.Backbone, size: int, path: pathlib.Path) -> None:
  """Writes either, by the ending of `path`: .onnx, or .stablehlo."""
  if path.suffix == ".onnx":
    onnx(model, size, str(path))
  else:
    path.write_bytes(stablehlo(model, size).serialize())


def _program(model: backbone.Backbone, size: int) -> tuple[Callable, jax.Array]:
  """The function, and its argument in the abstract."""
  patch = model.module.patch_size
  if size < patch or size % patch:
    raise errors.UserError(
      f"size={size} must be a multiple of the patch size, {patch}; try"
      f" {max(round(size / patch), 1) * patch}"
    )
  # The others are kernels of one platform, or walk over a batch that they must know.
  module = dataclasses.replace(model.module, attention="xla")

  def features(images):
    seen = backbone.apply(module, model.params, images)
    return seen.image, seen.cls, seen.patches

  (batch,) = export.symbolic_shape("batch")
  return features, jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
