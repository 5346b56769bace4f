"""Export of a frozen backbone as a program: StableHLO by jax.export, and ONNX.

Both take uint8 images [B, size, size, 3] of any B, hold the weights, and return (image
feature [B, D], CLS token [B, D], patch tokens [B, N, D]) in float32. ONNX calls these
images, and image, cls, patches.
"""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import export

from dinojax import backbone, errors

PLATFORMS = ("cpu", "cuda", "tpu")
OUTPUTS = ("image", "cls", "patches")
IN_FILE = 1 << 20  # bytes; larger arrays lie beside an .onnx, which holds 2 GB at most


def stablehlo(model: backbone.Backbone, size: int) -> export.Exported:
  """The program of `jax.export`, for every platform; `.serialize()` gives its bytes.

  `jax.export.deserialize(bytes).call(images)` runs them, without this package.

  Raises:
    UserError: size is no multiple of the patch size.
  """
  features, images = _program(model, size)
  return export.export(jax.jit(features), platforms=PLATFORMS)(images)


def onnx(model: backbone.Backbone, size: int, path: pathlib.Path) -> None:
  """Writes an ONNX file, by jax2onnx; arrays over 1 MiB go to `path`.data.

  Raises:
    UserError: as above, or jax2onnx is not installed.
  """
  features, images = _program(model, size)
  # Traced before: jax2onnx replaces functions of jax that flax's scan calls.
  traced = jax.make_jaxpr(features)(images)
  try:
    import jax2onnx
    import onnx_ir  # which jax2onnx comes with
  except ModuleNotFoundError as error:
    raise errors.UserError(
      f"{path} needs jax2onnx: pip install 'dinojax[onnx]'"
    ) from error
  with _without_warnings("jax2onnx", "onnx_ir"):
    program = jax2onnx.to_onnx(
      lambda x: tuple(jax.core.eval_jaxpr(traced.jaxpr, traced.consts, x)),
      [images],
      model_name="dinojax",
      input_names=["images"],
      output_names=OUTPUTS,
      return_mode="ir",
    )
    # onnxruntime would print a warning for each unused array.
    for graph in program.graphs():
      for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
          del graph.initializers[name]
    onnx_ir.save(
      program, path, external_data=f"{path.name}.data", size_threshold_bytes=IN_FILE
    )
    arrays = path.with_name(f"{path.name}.data")
    if arrays.exists() and not arrays.stat().st_size:
      arrays.unlink()  # all arrays are small


def write(model: backbone.Backbone, size: int, path: pathlib.Path) -> None:
  """Writes an .onnx or a .stablehlo, by the ending of `path`."""
  if path.suffix == ".onnx":
    onnx(model, size, path)
  else:
    path.write_bytes(stablehlo(model, size).serialize())


def _program(model: backbone.Backbone, size: int) -> tuple[Callable, jax.Array]:
  """The function to export, and its abstract argument."""
  patch = model.module.patch_size
  if size < patch or size % patch:
    raise errors.UserError(
      f"size={size} must be a multiple of the patch size, {patch}; try"
      f" {max(round(size / patch), 1) * patch}"
    )
  # The other kernels are of one platform, or loop over a batch of known size.
  module = dataclasses.replace(model.module, attention="xla")

  def features(images):
    found = backbone.apply(module, model.params, images)
    # Two outputs need two values, also where `image` is `cls`.
    return jnp.copy(found.image), found.cls, found.patches

  (batch,) = export.symbolic_shape("batch")
  return features, jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)


@contextlib.contextmanager
def _without_warnings(*names: str) -> Iterator[None]:
  """Silences all but the errors of these packages' loggers.

  jax2onnx warns, with tracebacks, of plug-ins for other libraries that it cannot load,
  and onnx_ir of inner values without a type. Failures still raise.
  """
  loggers = [logging.getLogger(name) for name in names]
  levels = [logger.level for logger in loggers]
  try:
    for logger in loggers:
      logger.setLevel(logging.ERROR)
    yield
  finally:
    for logger, level in zip(loggers, levels, strict=True):
      logger.setLevel(level)
