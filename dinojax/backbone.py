"""A frozen backbone to use: weights of any origin in, features of images out.

from dinojax import backbone
model = backbone.load("runs/quickstart")  # or .pth, .safetensors, a Hugging Face folder
features = model(images)  # uint8 [B, H, W, 3] -> .image, .cls, .patches
"""

import dataclasses
import functools
import hashlib
import json
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import export
from jax.sharding import Mesh

from dinojax import checkpoint, sharding, vit
from dinojax.weights import formats, model

FEATURES = ("cls", "gap", "cls+gap")


@dataclasses.dataclass(frozen=True)
class Backbone:
  """A network with its weights, compiled once for each size of a batch.

  module: the network. params: its weights. fingerprint: 16 hex digits of the weights,
  the same on any mesh and from any format.
  """

  module: vit.VisionTransformer
  params: Any
  fingerprint: str

  def __call__(self, images: jax.Array) -> vit.Features:
    """Features of uint8 RGB images [B, H, W, 3]; H, W multiples of the patch size."""
    return _apply(self.module, self.params, images)

  def export(self, size: int) -> export.Exported:
    """The same for images [B, size, size, 3] of any B, as StableHLO with its weights.

    `.serialize()` makes bytes of it; `jax.export.deserialize(bytes).call(images)`
    returns (image feature, CLS, patches) on any platform, without this package.
    """
    # Kernels belong to platforms; and their walks want to know the batch.
    module = dataclasses.replace(self.module, attention="xla")

    def features(images):
      seen = apply(module, self.params, images)
      return seen.image, seen.cls, seen.patches

    (batch,) = export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
    return export.export(jax.jit(features), platforms=("cpu", "cuda", "tpu"))(images)


def load(
  path: str,
  *,
  step: int | None = None,
  heads: int | None = None,
  pool: str | None = None,
  mesh: Mesh | None = None,
  dtype: str = "float32",
) -> Backbone:
  """A backbone from a run's workdir, .pth, .safetensors, or a Hugging Face folder.

  Args:
    path: of the weights; of a run, its teacher's backbone alone is read.
    step: of a run; None: its newest checkpoint.
    heads: attention heads, where the file does not say and they are not D / 64.
    pool: image feature, "cls" or "gap"; None: the run's, and "cls" of other weights.
    mesh: to put the weights on, as training does; None: the default device.
    dtype: of matrix products, "float32" or "bfloat16".

  Raises:
    UserError: it cannot be read, or does not fit.
  """
  weights = formats.read(path, step=step, heads=heads, pool=pool, mesh=mesh)
  params = jax.tree.map(jnp.asarray, weights.params["backbone"])
  return Backbone(
    model.module(weights.backbone, dtype=dtype, attention="auto"),
    params,
    fingerprint(weights.backbone, params),
  )


def fingerprint(architecture: dict, params: Any) -> str:
  """16 hex digits of an architecture and its weights."""
  identity = [architecture, checkpoint.checksums(params)]
  text = json.dumps(identity, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def apply(module, params, images: jax.Array, *, by_block: bool = False) -> vit.Features:
  """Features of uint8 images [B, H, W, 3]; `by_block` as in vit.py."""
  images = sharding.constrain_batch(vit.normalize(images))
  (seen,) = module.apply({"params": params}, [images], [None], by_block=by_block)
  return seen


def image_features(
  module, params, images: jax.Array, *, feature: str, layers: int
) -> jax.Array:
  """One vector per image: CLS token, mean patch token or both, of the last blocks.

  Args:
    module: a VisionTransformer.
    params: its weights.
    images: uint8 [B, H, W, 3].
    feature: of FEATURES.
    layers: so many of the last blocks, each with the final LayerNorm.

  Returns:
    [B, layers * D], or [B, 2 * layers * D] with the CLS tokens first.
  """
  seen = apply(module, params, images, by_block=layers > 1)
  return pool(seen, feature=feature, layers=layers)


def pool(seen: vit.Features, *, feature: str, layers: int) -> jax.Array:
  """`image_features` of what was seen, by block if `layers` is more than 1."""
  gap, cls = seen.patches.mean(1)[None], seen.cls[None]
  if layers > 1:
    chex.assert_scalar_in(layers, 2, len(seen.cls_by_block))
    gap, cls = seen.gap_by_block[-layers:], seen.cls_by_block[-layers:]
  kinds = {"cls": cls, "gap": gap}
  return jnp.concatenate([x for name in feature.split("+") for x in kinds[name]], -1)


@functools.partial(jax.jit, static_argnums=0)
def _apply(module, params, images):
  return apply(module, params, images)
