"""Linear segmentation: a linear layer on frozen patches, for several learning rates.

Source: the protocol of DINOv3 for ADE20K, in the public code: dropout of channels,
batch norm and a linear layer, trained by AdamW on random crops, with the loss at
pixels; windows slide over test images, and the best head counts by mean IoU.
DIFFERS: all rates are tried at once; published results have one, 1e-3. Heads are
compared after the last step, not every 5,000 steps.

Dimension key of pixel_heads.py, and C classes.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dinojax import errors
from dinojax.data import dense_crops, dense_records, photometric, sources
from dinojax.evals import patches, pixel_heads, segmentation, windows

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # DINOv3's is 1e-3
DECAY = 1e-3
DROPOUT = 0.1
WARMUP = 1_500 / 40_000  # of all steps
SCALE = (0.5, 2.0)  # of training images' shorter side, in crops
JITTER = photometric.Jitter(0.5, 32 / 255, 0.5, 0.5, 18 / 360)
LARGEST = 0.75  # share of a crop that one class may have


@dataclasses.dataclass(frozen=True)
class Classes:
  """The goal of the heads: classes of pixels. outputs: C."""

  outputs: int
  rates = RATES
  dropout = DROPOUT

  def optimizer(self, steps: int) -> optax.GradientTransformation:
    """AdamW, as DINOv3's."""
    return optax.adamw(rate(steps), b1=0.9, b2=0.999, weight_decay=DECAY)

  def values(self, outputs: jax.Array) -> jax.Array:
    """Logits as they are."""
    return outputs

  def sums(self, values: jax.Array, of_pixels: jax.Array) -> jax.Array:
    """[1], the cross-entropy of all labelled pixels; values: logits [S, S, C]."""
    known = of_pixels < self.outputs
    wanted = jnp.where(known, of_pixels, 0).astype(jnp.int32)
    own = jnp.take_along_axis(values, wanted[..., None], axis=-1)[..., 0]
    error = jax.nn.logsumexp(values, axis=-1) - own
    return jnp.where(known, error, 0).sum()[None]

  def loss(self, sums: jax.Array, pixels: int, progress: jax.Array) -> jax.Array:
    """The mean over all pixels, of which those without a label count as 0."""
    del progress
    return sums[0] / pixels

  def confusion(self, values: jax.Array, of_pixels: jax.Array) -> jax.Array:
    """Pixels by true and predicted class, int32 [C, C]; values: [r, Q, C]."""
    return segmentation.count_pixels(values, of_pixels)


def rate(steps: int) -> optax.Schedule:
  """The learning rate of DINOv3's protocol, for a peak of 1."""
  warmup = WARMUP * steps

  def value_at(step):
    rising = (1 - (1 - step / warmup) * (1 - 1e-6)) * (1 - step / steps)
    falling = (1 + jnp.cos(math.pi * (step + 1) / steps)) / 2
    return jnp.where(step < warmup, rising, falling)

  return value_at


def linear_segmentation(
  reader: patches.Reader,
  opened: dict[str, sources.DenseSource],
  *,
  class_names: tuple[str, ...],
  width: int,
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
    class_names: by value of the label maps.
    width: D.
    steps: of AdamW.
    batch_size: images of a step, a multiple of the devices.
    flip_prob: that a training crop is mirrored.
    seed: of first weights, order, crops and dropout.

  Returns:
    As `segmentation.scores`, under "linear_segmentation_", with the head's name,
    what it was chosen on, and the mean IoU of all heads there.

  Raises:
    UserError: there is no labelled pixel, or features are not finite.
  """
  goal = Classes(len(class_names))
  maps = dense_records.LabelMaps(goal.outputs, reader.max_pixels, reader.layout)
  crop = dense_crops.Crop(reader.side, SCALE, flip_prob, JITTER, LARGEST)
  how = dict(width=width, steps=steps, batch_size=batch_size, seed=seed)
  state = pixel_heads.fit(reader, opened["train"], goal, maps=maps, crop=crop, **how)

  predict = pixel_heads.Predict(goal)

  def confusion(name):
    total = 0
    for found in windows.evaluate(
      *(reader, opened[name], maps, predict, state, goal.confusion),
      description=f"windows of --{name}",
    ):
      total = total + found.astype(np.int64).sum(0)
    if not np.any(total):
      raise errors.UserError(
        f"{opened[name].where}: no readable image has a labelled pixel"
      )
    return total  # [H, C, C]

  chosen_on = "val" if "val" in opened else "test"
  pixels = confusion(chosen_on)
  means = np.nanmean(segmentation.intersection_over_union(pixels), axis=1)
  best = int(means.argmax())
  final = pixels if chosen_on == "test" else confusion("test")
  names = [f"lr{rate:g}" for rate in RATES]
  found = segmentation.scores(final[best], class_names) | {
    "head": names[best],
    "chosen_on": chosen_on,
    "grid": dict(zip(names, means.tolist(), strict=True)),
  }
  return {f"linear_segmentation_{name}": value for name, value in found.items()}
