"""Export of a network as a program: StableHLO by jax.export, and ONNX.

Both take uint8 RGB images [B, size, size, 3] of any B, or images of the network's own
layout, which ONNX calls images, and hold the weights. That of a backbone returns (image
feature [B, D], CLS token [B, D], patch tokens [B, N, D]) in float32, in ONNX image,
cls, patches.
"""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export

from dinojax import backbone, errors
from dinojax.data import layouts
from dinojax.networks import vit

PLATFORMS = ("cpu", "cuda", "tpu")
IN_FILE = 1 << 20  # bytes; larger arrays lie beside an .onnx, which holds 2 GB at most


class Program(NamedTuple):
  """What can be exported.

  apply: images [B, S, S, C] -> a tuple of arrays. outputs: their names. module: of the
  backbone, which says what its images are.
  """

  apply: Callable[[jax.Array], tuple[jax.Array, ...]]
  outputs: tuple[str, ...]
  module: vit.VisionTransformer


def of_backbone(model: backbone.Backbone) -> Program:
  """The program that computes features."""
  module = exportable(model.module)

  def features(images):
    found = backbone.apply(module, model.params, images)
    # Two outputs need two values, also where `image` is `cls`.
    return jnp.copy(found.image), found.cls, found.patches

  return Program(features, ("image", "cls", "patches"), module)


def exportable(module: Any) -> Any:
  """The same network, of operations that every platform has, for any batch."""
  # The other kernels are of one platform, or loop over a batch of known size.
  return dataclasses.replace(module, attention="xla")


def stablehlo(program: Program, size: int) -> export.Exported:
  """The program of `jax.export`, for every platform; `.serialize()` gives its bytes.

  `jax.export.deserialize(bytes).call(images)` runs them, without this package.

  Raises:
    UserError: size is no multiple of the patch size.
  """
  images = _images(program, size)
  return export.export(jax.jit(program.apply), platforms=PLATFORMS)(images)


def onnx(program: Program, size: int, path: pathlib.Path) -> None:
  """Writes an ONNX file, by jax2onnx; arrays over 1 MiB go to `path`.data.

  Raises:
    UserError: as above, or jax2onnx is not installed.
  """
  images = _images(program, size)
  # Traced before: jax2onnx replaces functions of jax that flax's scan calls.
  traced = jax.make_jaxpr(program.apply)(images)
  try:
    import jax2onnx
    import onnx_ir  # which jax2onnx comes with
  except ModuleNotFoundError as error:
    raise errors.UserError(
      f"{path} needs jax2onnx: pip install 'dinojax[onnx]'"
    ) from error
  with _without_warnings("jax2onnx", "onnx_ir"):
    converted = jax2onnx.to_onnx(
      lambda x: tuple(jax.core.eval_jaxpr(traced.jaxpr, traced.consts, x)),
      [images],
      model_name="dinojax",
      input_names=["images"],
      output_names=program.outputs,
      return_mode="ir",
    )
    # onnxruntime would print a warning for each unused array.
    for graph in converted.graphs():
      for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
          del graph.initializers[name]
    onnx_ir.save(
      converted, path, external_data=f"{path.name}.data", size_threshold_bytes=IN_FILE
    )
    arrays = path.with_name(f"{path.name}.data")
    if arrays.exists() and not arrays.stat().st_size:
      arrays.unlink()  # all arrays are small


def write(program: Program, size: int, path: pathlib.Path) -> None:
  """Writes an .onnx or a .stablehlo, by the ending of `path`."""
  if path.suffix == ".onnx":
    onnx(program, size, path)
  else:
    path.write_bytes(stablehlo(program, size).serialize())


def _images(program: Program, size: int) -> jax.ShapeDtypeStruct:
  """The abstract images of a program."""
  patch = program.module.patch_size
  if size < patch or size % patch:
    raise errors.UserError(
      f"size={size} must be a multiple of the patch size, {patch}; try"
      f" {max(round(size / patch), 1) * patch}"
    )
  (batch,) = export.symbolic_shape("batch")
  channels, dtype = layouts.of(program.module)
  return jax.ShapeDtypeStruct((batch, size, size, channels), dtype)


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
