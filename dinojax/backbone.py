"""Frozen backbone: loads weights of any format and computes features of images.

from dinojax import backbone
model = backbone.load("runs/quickstart")  # or .pth, .safetensors, a Hugging Face folder
features = model(images)  # uint8 RGB [B, H, W, 3] -> .image, .cls, .patches

Networks of other images take them as they are stored, see `Backbone.layout`.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dinojax import checksums, errors, sharding
from dinojax.data import layouts
from dinojax.networks import vit
from dinojax.weights import formats, model, runs


@dataclasses.dataclass(frozen=True)
class Backbone:
  """A network with its weights, compiled once for each size of a batch.

  module: the network. params: its weights. fingerprint: 16 hex digits of the weights,
  the same on any mesh and from any format. sizes: {"resize", "crop"}, pixels that its
  images are meant to have. run: (workdir, step) of the run that trained it, if any.
  """

  module: vit.VisionTransformer
  params: Any
  fingerprint: str
  sizes: dict[str, int]
  run: tuple[str, int] | None = None

  def __call__(self, images: jax.Array) -> vit.Features:
    """Features of images [B, H, W, C] of the network's layout: uint8 RGB of most.

    Raises:
      UserError: another type or shape, or a side no multiple of the patch size.
    """
    check_images(images, self.module)
    return _apply(self.module, self.params, images)

  @property
  def layout(self) -> layouts.Layout:
    """How many channels its images have, and of which type."""
    return layouts.of(self.module)

  def image_sizes(self, *, resize: int | None, crop: int | None) -> dict[str, int]:
    """{"resize", "crop"}: pixels of the shorter side, then of a side of the crop.

    None: as the weights say; 8/7 of the crop for `resize` where they say another crop.

    Raises:
      UserError: the network cannot see such images.
    """
    patch = self.module.patch_size
    crop = self.sizes["crop"] if crop is None else crop
    if resize is None:
      known = crop == self.sizes["crop"]
      resize = self.sizes["resize"] if known else model.usual_resize(crop)
    if crop < patch or crop % patch:
      raise errors.UserError(
        f"--crop={crop} must be a multiple of the patch size, {patch}; try"
        f" {max(round(crop / patch), 1) * patch}"
      )
    if resize < crop:
      raise errors.UserError(f"--resize={resize} must be at least --crop={crop}")
    return {"resize": resize, "crop": crop}


def check_images(images: jax.Array, module: vit.VisionTransformer) -> None:
  """Raises UserError if a batch of images will not do, with what to give instead."""
  patch_size, (channels, dtype) = module.patch_size, layouts.of(module)
  kind = "RGB" if channels == 3 else f"{channels} channels"
  wanted = f"{kind} [B, H, W, {channels}]"
  if not isinstance(images, np.ndarray | jax.Array):
    raise errors.UserError(
      f"images are a {type(images).__name__}; give an array: np.asarray(images)"
    )
  shape = list(images.shape)
  if images.dtype != dtype:
    values = "0 to 255 as decoded" if dtype == "uint8" else "as stored"
    raise errors.UserError(
      f"images are {images.dtype}; give {dtype}, {values}: they are normalized inside"
    )
  if len(shape) != 4:
    one = ": images[None] for a single one" if len(shape) == 3 else ""
    raise errors.UserError(
      f"images are {shape}; give a batch [B, H, W, {channels}]{one}"
    )
  if not shape[0]:
    raise errors.UserError(f"images are {shape}, a batch of none; give at least one")
  if shape[3] != channels:
    turned = ": images.transpose(0, 2, 3, 1)" if shape[1] == channels else ""
    raise errors.UserError(
      f"images are {shape}, of {shape[3]} channels; give {wanted}{turned}"
    )
  fitting = [max(round(side / patch_size), 1) * patch_size for side in shape[1:3]]
  if shape[1:3] != fitting:
    raise errors.UserError(
      f"images are {shape[1]} x {shape[2]} pixels; give multiples of the patch size,"
      f" {patch_size}: try {fitting[0]} x {fitting[1]}"
    )


def of_weights(weights: model.Weights, *, dtype: str = "float32") -> Backbone:
  """The backbone of weights in memory."""
  params = jax.tree.map(jnp.asarray, weights.params["backbone"])
  module = model.module(weights.backbone, dtype=dtype, attention="auto")
  crop = model.usual_crop(patch_size=module.patch_size, pos_grid=module.pos_grid)
  usual = {"resize": model.usual_resize(crop), "crop": crop}
  weights_hash = fingerprint(weights.backbone, params)
  return Backbone(module, params, weights_hash, weights.sizes or usual)


def load(
  path: str,
  *,
  step: int | None = None,
  heads: int | None = None,
  pool: str | None = None,
  rope_periods: str | None = None,
  mesh: Mesh | None = None,
  dtype: str = "float32",
) -> Backbone:
  """A backbone from a run's workdir, .pth, .safetensors, or a Hugging Face folder.

  Args:
    path: of the weights; of a run, only its teacher's backbone is read.
    step: of a run; None: its newest checkpoint.
    heads: attention heads, if the file does not store them and they are not D / 64.
    pool: image feature, "cls" or "gap"; None: that of the run, "cls" of other weights.
    rope_periods: of rotary positions, "float32" or "bfloat16", as released .pth files
      hold them; None: that of the file, else "float32".
    mesh: where to put the weights, sharded as in training; None: the default device.
    dtype: of matrix products, "float32" or "bfloat16".

  Raises:
    UserError: it cannot be read, does not fit, or holds values that are not finite.
  """
  if mesh is None:
    mesh = sharding.make_mesh(data=1, fsdp=1, devices=jax.local_devices()[:1])
  # The newest step is looked up once: a live run may save another one meanwhile.
  run = runs.locate(pathlib.Path(path).expanduser(), step)
  step = run[1] if run else step
  choices = {"heads": heads, "pool": pool, "rope_periods": rope_periods}
  weights = formats.read(path, step=step, mesh=mesh, **choices)
  return dataclasses.replace(of_weights(weights, dtype=dtype), run=run)


def fingerprint(architecture: dict, params: Any) -> str:
  """16 hex digits of an architecture and its weights."""
  # Without what older weights lack: theirs stay the same.
  own = {k: v for k, v in architecture.items() if v != model.DEFAULTS.get(k, ...)}
  return checksums.digest(params, own)


def apply(module, params, images: jax.Array, *, by_block: bool = False) -> vit.Features:
  """Features of images [B, H, W, C]; `by_block` as in vit.py."""
  images = sharding.constrain_batch(module.normalize(images))
  (features,) = module.apply({"params": params}, [images], [None], by_block=by_block)
  return features


def columns(feature: str, layers: int) -> tuple[tuple[str, int], ...]:
  """The vectors of width D that make up an image feature, as (kind, block) in order.

  "cls+gap" of two layers is ("cls", -2), ("cls", -1), ("gap", -2), ("gap", -1).
  """
  return tuple(
    (kind, -block) for kind in feature.split("+") for block in range(layers, 0, -1)
  )


def image_columns(
  module, params, images: jax.Array, wanted: Sequence[tuple[str, int]]
) -> jax.Array:
  """CLS and mean patch tokens side by side, each after the final LayerNorm.

  Args:
    module: a VisionTransformer.
    params: its weights.
    images: [B, H, W, C].
    wanted: (kind, block), of `columns`; block -1 is the last one.

  Returns:
    [B, len(wanted) * D] float32.
  """
  deepest = min(block for _, block in wanted)
  chex.assert_scalar_in(-deepest, 1, module.depth)
  return select_columns(apply(module, params, images, by_block=deepest < -1), wanted)


def select_columns(
  features: vit.Features, wanted: Sequence[tuple[str, int]]
) -> jax.Array:
  """`image_columns` of computed features; of blocks before -1, with `by_block`."""
  kinds = {"cls": features.cls[None], "gap": features.patches.mean(1)[None]}
  if features.cls_by_block is not None:
    kinds = {"cls": features.cls_by_block, "gap": features.gap_by_block}
  return jnp.concatenate([kinds[kind][block] for kind, block in wanted], axis=-1)


@functools.partial(jax.jit, static_argnums=0)
def _apply(module, params, images):
  return apply(module, params, images)
