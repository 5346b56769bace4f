"""Images per second of the training step, and its share of the device's peak.

  python tests/bench/step.py --config=experiments/vits14.py --batch=64

Runs the real `dino.train_step` of a config on all devices of this machine, on random
pixels. The peak is a large matrix product in the config's dtype, timed in between the
steps of the same run. FLOPs are the model's own, counted by hand: recomputation is not
work.
"""

import argparse
import importlib.util
import math
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from dinojax import assembly, preflight, sharding
from dinojax.data import masking


def step_flops(config) -> float:
  """Model FLOPs of one training step per image: 2 per multiply-add, backward twice."""
  c, views, locals_ = config.backbone, 2, config.augment.num_local
  hidden = (int(4 * c.width * 2 / 3) + 7) // 8 * 8
  ffn = 3 * c.width * hidden if c.ffn == "swiglu" else 8 * c.width**2

  def forward(size):
    patches = (size // c.patch_size) ** 2
    tokens = patches + 1 + c.registers
    layer = 2 * tokens * (4 * c.width**2 + ffn) + 4 * tokens**2 * c.width
    return 2 * patches * 3 * c.patch_size**2 * c.width, c.depth * layer

  def head(name):
    h = config.heads.get(name, config.heads.dino)
    body = c.width * h.hidden + h.hidden**2 + h.hidden * h.bottleneck
    return 2 * (body + h.bottleneck * h.prototypes)

  (embed, blocks), (local_embed, local_blocks) = (
    forward(config.augment[kind].size) for kind in ("global1", "local")
  )
  kept = 1 - c.drop_path
  hidden_patches = masking.slots(**mask_arguments(config)) / config.group_size
  teacher = views * (embed + blocks + head("dino")) + hidden_patches * head("ibot")
  student = views * (embed + kept * blocks + head("dino")) + hidden_patches * head(
    "ibot"
  )
  student += locals_ * (local_embed + kept * local_blocks + head("dino"))
  return teacher + 3 * student


def mask_arguments(config) -> dict:
  """Arguments of `masking.block_masks` besides the generator."""
  return dict(
    group_size=config.group_size,
    views=2,
    grid=config.augment.global1.size // config.backbone.patch_size,
    **config.masking,
  )


def random_batch(config, rng) -> dict:
  """A host batch of noise, with real masks."""
  b, groups = config.data.batch_size, config.data.batch_size // config.group_size
  masks = [masking.block_masks(rng, **mask_arguments(config)) for _ in range(groups)]

  def crops(count, size):
    return rng.integers(0, 256, (b, count, size, size, 3), dtype=np.uint8)

  return {
    "global_crops": crops(2, config.augment.global1.size),
    "local_crops": crops(config.augment.num_local, config.augment["local"].size),
    "mask": np.concatenate([m["mask"] for m in masks]),
    "masked_indices": np.stack([m["masked_indices"] for m in masks]),
    "masked_weights": np.stack([m["masked_weights"] for m in masks]),
  }


def timed(function, *args):
  """Seconds until the result is there, and the result."""
  start = time.perf_counter()
  result = jax.block_until_ready(function(*args))
  return time.perf_counter() - start, result


def main():
  """Prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--config", default="experiments/vits14.py", help="experiment")
  parser.add_argument(
    "--batch", type=int, default=64, help="images of the global batch"
  )
  parser.add_argument("--steps", type=int, default=10, help="steps that count")
  parser.add_argument(
    "--matmul", type=int, default=4096, help="side of the peak product"
  )
  args = parser.parse_args()
  spec = importlib.util.spec_from_file_location("experiment", args.config)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  with config.unlocked():
    config.data.batch_size = args.batch

  preflight.check(config, devices=jax.device_count())
  mesh = sharding.make_mesh(**config.mesh)
  run = assembly.assemble(config, mesh)
  key = jax.random.key(0)
  with jax.set_mesh(mesh):
    state = run.init(key)
    groups = args.batch // config.group_size
    positions = sharding.local_positions(mesh, groups)
    batch = random_batch(config, np.random.default_rng(0))
    batch = sharding.put_batch(mesh, batch, positions, groups)
    compile_seconds, (state, _) = timed(run.train_step, state, batch, key)

    side, dtype = args.matmul, jnp.dtype(config.backbone.dtype)
    a = jax.random.normal(key, (side, side), dtype)
    product = jax.jit(lambda x: x @ x)
    timed(product, a)
    step_seconds, product_seconds = [], []
    for _ in range(args.steps):
      seconds, (state, scalars) = timed(run.train_step, state, batch, key)
      step_seconds.append(seconds)
      product_seconds.append(timed(product, a)[0])
  if not math.isfinite(float(scalars["loss"])):
    sys.exit(f"the loss is {scalars['loss']}: not a step worth timing")

  # The product runs on one device; the step on all.
  peak = 2 * side**3 / statistics.median(product_seconds) * mesh.size
  seconds = statistics.median(step_seconds)
  rate = step_flops(config) * args.batch / seconds
  rows = [
    ("config", args.config),
    ("devices", f"{mesh.size} x {jax.devices()[0].device_kind}"),
    ("batch, dtype", f"{args.batch}, {dtype}"),
    ("first call, with compilation", f"{compile_seconds:.1f} s"),
    ("step, median", f"{seconds:.3f} s"),
    (
      "step, fastest and slowest",
      f"{min(step_seconds):.3f}, {max(step_seconds):.3f} s",
    ),
    ("images per second", f"{args.batch / seconds:.2f}"),
    ("model FLOPs per image", f"{step_flops(config):.3e}"),
    ("model FLOP/s", f"{rate:.3e}"),
    (f"matrix product of {side}, FLOP/s", f"{peak:.3e}"),
    ("share of that peak", f"{rate / peak:.1%}"),
  ]
  for name, value in rows:
    print(f"{name:32} {value}")


if __name__ == "__main__":
  main()
