"""Linear depth: a linear layer on frozen patches, for several learning rates.

Source: the protocol of DINOv3 for NYU, in the public code: batch norm, a linear layer
to 256 bins of depth, their mean by shifted and normalised ReLUs, SigLoss, AdamW.
DIFFERS: the rate is an ordinary one-cycle of linear warm-up and cosine, and Adam's
first moment decays by 0.9 throughout. In the public code it is 0 during the warm-up,
since a variable is unset, which surely nobody meant.
DIFFERS: all rates are tried at once; windows slide over test images, which are not
mirrored too; training images are not rotated.

Dimension key of pixel_heads.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dinojax import errors
from dinojax.data import dense_crops, dense_records, photometric, sources
from dinojax.evals import patches, pixel_heads, windows

RATES = (1e-4, 3e-4, 1e-3, 3e-3)  # DINOv3's is 3e-4
BINS = 256
DECAY = 1e-4
CLIP = 35.0  # of a head's gradient
WARMUP = 1 / 3  # of all steps
FIRST, LAST = 1e-3, 1 / 25_000  # rates, of the peak
MEAN_WEIGHT = 0.15  # of the squared mean error, beside the variance
MEAN_ALONE = 100 / 38_400  # of all steps, at the start
EPSILON = 1e-3  # m, in the logarithm
JITTER = photometric.Jitter(0.5, 0.25, 0.0, 0.1, 0.0)
RIGHT = 1.25  # ratio below which delta1 counts a pixel
METRICS = ("rmse", "absrel", "delta1")


@dataclasses.dataclass(frozen=True)
class Metres:
  """The goal of the heads: metres within low..high."""

  low: float
  high: float
  outputs = BINS
  rates = RATES
  dropout = 0.0

  def optimizer(self, steps: int) -> optax.GradientTransformation:
    """AdamW with a one-cycle."""
    return optax.chain(
      optax.clip_by_global_norm(CLIP),
      optax.adamw(rate(steps), b1=0.9, b2=0.99, weight_decay=DECAY),
    )

  def values(self, outputs: jax.Array) -> jax.Array:
    """Outputs [..., BINS] -> metres [..., 1]."""
    weights = jax.nn.relu(outputs) + 0.1
    bins = jnp.linspace(self.low, self.high, BINS)
    # Not a matrix product, which accelerators round.
    return (weights * bins).sum(-1, keepdims=True) / weights.sum(-1, keepdims=True)

  def sums(self, values: jax.Array, of_pixels: jax.Array) -> jax.Array:
    """[3]: known pixels, and the sums of their log error and of its square."""
    known = of_pixels > 0
    error = jnp.log(values[..., 0] + EPSILON)
    error = jnp.where(known, error - jnp.log(of_pixels + EPSILON), 0)
    return jnp.stack([known.sum(dtype=jnp.float32), error.sum(), (error**2).sum()])

  def loss(self, sums: jax.Array, pixels: int, progress: jax.Array) -> jax.Array:
    """SigLoss over all known pixels of a batch."""
    del pixels
    count, total, squares = sums
    mean = total / jnp.maximum(count, 1)
    variance = (squares - total * mean) / jnp.maximum(count - 1, 1)
    variance = jnp.where(progress < MEAN_ALONE, 0, jnp.maximum(variance, 0))
    square = variance + MEAN_WEIGHT * mean**2
    # The root has no slope at 0, as of a batch that knows no depth.
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)

  def errors(self, values: jax.Array, of_pixels: jax.Array) -> jax.Array:
    """[4]: known pixels, and sums of squared and relative errors, and of right ones."""
    known = of_pixels > 0
    metres = jnp.clip(values[..., 0], self.low, self.high)
    wanted = jnp.where(known, of_pixels, 1)
    error = jnp.abs(metres - wanted)
    right = jnp.maximum(metres / wanted, wanted / metres) < RIGHT
    terms = jnp.ones_like(error), error**2, error / wanted, right
    return jnp.stack([jnp.where(known, x, 0).sum() for x in terms])


def rate(steps: int) -> optax.Schedule:
  """A one-cycle for a peak of 1."""
  warmup = WARMUP * steps

  def value_at(step):
    rising = FIRST + (1 - FIRST) * step / warmup
    share = (step - warmup) / max(steps - warmup, 1)
    falling = LAST + (1 - LAST) * (1 + jnp.cos(jnp.pi * share)) / 2
    return jnp.where(step < warmup, rising, falling)

  return value_at


def depth(
  reader: patches.Reader,
  opened: dict[str, sources.DepthSource],
  *,
  width: int,
  low: float,
  high: float,
  crop: str,
  steps: int,
  batch_size: int,
  flip_prob: float,
  seed: int,
) -> dict:
  """Trains all heads on "train"; evaluates the best one on "test".

  Args:
    reader: the network; its side S is that of crops and windows.
    opened: "train", "test", and perhaps "val", on which the best head is chosen;
      without it that is done on "test", as published numbers do.
    width: D.
    low: metres; what is nearer counts nowhere.
    high: likewise, what is farther.
    crop: of `depth_maps.CROPS`, where errors of "test" and "val" are measured.
    steps: of AdamW.
    batch_size: images of a step, a multiple of the devices.
    flip_prob: that a training crop is mirrored.
    seed: of first weights, order and crops.

  Returns:
    depth_rmse in metres, depth_absrel and depth_delta1, means of those of all images
    that know any depth; depth_head, the head's name, depth_chosen_on, and depth_grid,
    the RMSE of all heads there.

  Raises:
    UserError: no image knows any depth, or features are not finite.
  """
  goal = Metres(low, high)
  maps = dense_records.DepthMaps(low, high, "none", reader.max_pixels, reader.layout)
  kind = dense_crops.Crop(reader.side, (1.0, 1.0), flip_prob, JITTER)
  how = dict(width=width, steps=steps, batch_size=batch_size, seed=seed)
  state = pixel_heads.fit(reader, opened["train"], goal, maps=maps, crop=kind, **how)
  measured = dataclasses.replace(maps, crop=crop)

  predict = pixel_heads.Predict(goal)

  def metrics(name):
    found = windows.evaluate(
      *(reader, opened[name], measured, predict, state, goal.errors),
      description=f"windows of --{name}",
    )
    return mean_errors(np.concatenate(list(found)), opened[name])

  chosen_on = "val" if "val" in opened else "test"
  of_heads = metrics(chosen_on)
  best = int(of_heads[:, 0].argmin())
  of_best = (of_heads if chosen_on == "test" else metrics("test"))[best]
  names = [f"lr{rate:g}" for rate in RATES]
  found = dict(zip(METRICS, of_best.tolist(), strict=True)) | {
    "head": names[best],
    "chosen_on": chosen_on,
    "grid": dict(zip(names, of_heads[:, 0].tolist(), strict=True)),
  }
  return {f"depth_{name}": value for name, value in found.items()}


def mean_errors(sums: np.ndarray, source: sources.Source) -> np.ndarray:
  """RMSE, AbsRel and delta1 of each image, averaged over images: float64 [H, 3].

  Args:
    sums: [images, H, 4], of `Metres.errors`.
    source: of the images, for the message.

  Raises:
    UserError: no image knows any depth.
  """
  sums = sums[sums[:, 0, 0] > 0].astype(np.float64)
  if not len(sums):
    raise errors.UserError(
      f"{source.where}: no readable image has a pixel of known depth in the range"
    )
  means = sums[..., 1:] / sums[..., :1]
  means[..., 0] **= 0.5
  return means.mean(0)
