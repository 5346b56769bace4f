"""Mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899): two images made into one.

Image i of a batch of B meets image B - 1 - i, so that no random order moves images
between devices. The share of image i is drawn from Beta(alpha, alpha) for each image
apart. With both on, half of the images are mixed and half cut.
"""

import jax
import jax.numpy as jnp


def mix(
  key: jax.Array, images: jax.Array, *, mixup: float, cutmix: float
) -> tuple[jax.Array, jax.Array]:
  """Mixed images, and how much of each is its own.

  Args:
    key: of this batch.
    images: [B, H, W, C].
    mixup: alpha of Mixup; 0: off.
    cutmix: alpha of CutMix; 0: off. One of the two is on.

  Returns:
    [B, H, W, C] of the same type, and float32 [B] within 0 and 1; the rest of image i,
    and of its label, is of image B - 1 - i.
  """
  size = len(images)
  choice, share_key, place_key = jax.random.split(key, 3)
  both = mixup > 0 and cutmix > 0
  cut = jax.random.bernoulli(choice, 0.5 if both else float(cutmix > 0), (size,))
  share = beta(share_key, jnp.where(cut, cutmix, mixup))
  blended, blend_share = blend(images, share)
  pasted, cut_share = paste(images, share, place_key)
  mixed = jnp.where(cut[:, None, None, None], pasted, blended)
  return mixed, jnp.where(cut, cut_share, blend_share)


def beta(key: jax.Array, alpha: jax.Array) -> jax.Array:
  """[B], each of Beta(alpha, alpha) of its own alpha, [B]."""
  return jax.random.beta(key, alpha, alpha)


def blend(images: jax.Array, share: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mixup: the weighted mean of two images, in their type, and `share` [B]."""
  weight = share[:, None, None, None]
  mixed = weight * images + (1 - weight) * images[::-1]
  whole = jnp.issubdtype(images.dtype, jnp.integer)
  return (jnp.round(mixed) if whole else mixed).astype(images.dtype), share


def paste(
  images: jax.Array, share: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """CutMix: a box of the other image, of its shape, in the same place.

  Args:
    images: [B, H, W, C].
    share: [B] of each image that should stay.
    key: of the box's centre, which lies anywhere; what is outside is cut off.

  Returns:
    The images, and the share [B] of their pixels that did stay.
  """
  size, height, width, _ = images.shape
  centre = jax.random.uniform(key, (2, size))
  inside = []
  for side, middle in zip((height, width), centre, strict=True):
    half = side * jnp.sqrt(1 - share) / 2
    low, high = (jnp.round(middle * side + x) for x in (-half, half))
    places = jnp.arange(side)
    inside.append((places >= low[:, None]) & (places < high[:, None]))
  box = inside[0][:, :, None] & inside[1][:, None, :]  # [B, H, W]
  mixed = jnp.where(box[..., None], images[::-1], images)
  return mixed, 1 - box.mean((1, 2), dtype=jnp.float32)
