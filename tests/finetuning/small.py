"""A small backbone and recipe for tests of fine-tuning."""

import jax
import jax.numpy as jnp
import numpy as np

from dinojax import backbone, sharding
from dinojax.finetuning import tuning
from dinojax.weights import model

ARCHITECTURE = model.DEFAULTS | dict(
  patch_size=4, pos_grid=4, width=16, depth=2, heads=2, ffn="mlp", registers=0
)
ARCHITECTURE |= dict(pool="gap")
CLASSES = 10


def params():
  """Random weights of ARCHITECTURE, as NumPy arrays."""
  rng = np.random.default_rng(0)

  def fill(path, x):
    around = 1.0 if path[-1].key in ("scale", "gamma") else 0.0
    return np.float32(around + 0.2 * rng.normal(size=x.shape))

  return jax.tree_util.tree_map_with_path(fill, model.shapes(ARCHITECTURE))


def loaded(mesh=None):
  """The backbone of `params`, on a mesh or the default device."""
  weights = model.Weights(
    ARCHITECTURE, {"backbone": params()}, dict(resize=16, crop=16)
  )
  made = backbone.of_weights(weights)
  if mesh is None:
    return made
  placed = sharding.state_sharding(mesh, made.params)
  return backbone.Backbone(
    made.module, jax.device_put(made.params, placed), made.fingerprint, made.sizes
  )


def recipe(tune, **changes):
  """For four steps of 16 images."""
  fields = dict(
    task="classes",
    tune=tune,
    steps=4,
    warmup_steps=1,
    learning_rate=0.01,
    weight_decay=0.01,
    head_lr_scale=1.0,
    layer_decay=0.5,
    lora_rank=2,
    lora_alpha=4.0,
    batch_size=16,
    ema=0.0,
    mixup=0.0,
    cutmix=0.0,
    seed=0,
    min_area=0.5,
    flip_prob=0.5,
    resize=16,
    crop=16,
    feature="gap",
    layers=1,
    dtype="float32",
  )
  return tuning.Recipe(**fields | changes)


def dense_batch(seed=0):
  """The same images with label maps of CLASSES, in patches; some have no label."""
  rng = np.random.default_rng(seed)
  shares = np.float32(rng.dirichlet(np.ones(CLASSES), (16, 16)))
  shares[:, 3] = 0
  return batch(seed) | {"label": jnp.asarray(shares)}


def batch(seed=0):
  """16 images of noise, the last without a label."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, CLASSES, 16).astype(np.int32)
  labels[-1] = -1
  return {
    "image": jnp.asarray(rng.integers(0, 256, (16, 16, 16, 3), np.uint8)),
    "label": jnp.asarray(labels),
  }
