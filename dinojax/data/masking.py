"""Block masks for iBOT: which patches of the global crops the student does not see.

After DINOv2 (arXiv:2304.07193) and BEiT (arXiv:2106.08254), with two changes.
DIFFERS: the number of masked patches is exact, and mask ratios are spread over a group,
not over the batch. So every group masks the same number U of patches, a constant of the
config: shapes are static, and the loss does not depend on the number of devices.
"""

import math

import numpy as np

MIN_BLOCK = 4  # patches, before sides are rounded
MAX_BLOCK_SHARE = 0.5  # of the grid
ASPECT = 0.3  # blocks have height / width between this and its inverse
TRIES = 10  # to place one block


def counts(
  *, group_size: int, views: int, grid: int, ratio_min: float, ratio_max: float
) -> list[int]:
  """Returns the number of masked patches of each masked crop of a group.

  Half of the crops are masked. The mask ratio of crop i of n is the upper edge of bin i
  of linspace(ratio_min, ratio_max, n + 1), rounded down to whole patches, but at least
  one patch.

  Args:
    group_size: images of a group; group_size * views is even.
    views: V, global crops per image.
    grid: patches along a side of a global crop; N = grid ** 2.
    ratio_min: lower edge of the first bin.
    ratio_max: upper edge of the last bin, at most 1.

  Returns:
    group_size * views / 2 counts, rising.
  """
  edges = np.linspace(ratio_min, ratio_max, group_size * views // 2 + 1)[1:]
  # The margin is for whole numbers that a rounding error has made too small.
  return [max(math.floor(edge * grid**2 + 1e-6), 1) for edge in edges]


def slots(
  *, group_size: int, views: int, grid: int, ratio_min: float, ratio_max: float
) -> int:
  """Returns U, the masked patches of a group; arguments as in `counts`."""
  return sum(
    counts(
      group_size=group_size,
      views=views,
      grid=grid,
      ratio_min=ratio_min,
      ratio_max=ratio_max,
    )
  )


def block_masks(
  rng: np.random.Generator,
  *,
  group_size: int,
  views: int,
  grid: int,
  ratio_min: float,
  ratio_max: float,
) -> dict[str, np.ndarray]:
  """Draws the masks of one group.

  It is random which half of the crops is masked, and which of them has which count.

  Args:
    rng: the only source of randomness.
    group_size: g, images of the group; this and all others as in `counts`.
    views: V, global crops per image.
    grid: patches along a side of a global crop.
    ratio_min: lower edge of the first bin.
    ratio_max: upper edge of the last bin.

  Returns:
    mask: bool [g, V, N], True = masked.
    masked_indices: int32 [U], rising positions in the group's flattened (g V N).
    masked_weights: float32 [U], 1 / (masked patches of the same crop). The sum of
      weight x cross-entropy, divided by g * V, is the mean over all crops, masked or
      not, of the crop's mean.
  """
  wanted = counts(
    group_size=group_size,
    views=views,
    grid=grid,
    ratio_min=ratio_min,
    ratio_max=ratio_max,
  )
  crops = group_size * views
  mask = np.zeros((crops, grid**2), bool)
  masked_crops = rng.permutation(crops)[: len(wanted)]
  for crop, count in zip(masked_crops, wanted, strict=True):
    mask[crop] = _blocks(rng, grid, count).reshape(-1)
  masked_indices = np.flatnonzero(mask)
  per_crop = mask.sum(axis=-1)  # [(g V)]
  return {
    "mask": mask.reshape(group_size, views, grid**2),
    "masked_indices": masked_indices.astype(np.int32),
    "masked_weights": (1 / per_crop[masked_indices // grid**2]).astype(np.float32),
  }


def _blocks(rng: np.random.Generator, grid: int, count: int) -> np.ndarray:
  """Masks exactly `count` patches: blocks as long as they fit, then single patches.

  Returns:
    bool [grid, grid].
  """
  mask = np.zeros((grid, grid), bool)
  while (missing := count - mask.sum()) > 0:
    if not _add_block(rng, mask, min(missing, int(grid**2 * MAX_BLOCK_SHARE))):
      patches = rng.choice(np.flatnonzero(~mask), missing, replace=False)
      mask.reshape(-1)[patches] = True
  return mask


def _add_block(rng: np.random.Generator, mask: np.ndarray, most: int) -> bool:
  """Masks a random rectangle that adds 1 to `most` patches; False if none was found."""
  grid = len(mask)
  for _ in range(TRIES):
    area = rng.uniform(min(MIN_BLOCK, most), most)
    aspect = math.exp(rng.uniform(math.log(ASPECT), -math.log(ASPECT)))
    height = round(math.sqrt(area * aspect))
    width = round(math.sqrt(area / aspect))
    if height > grid or width > grid:
      continue
    top = rng.integers(grid - height + 1)
    left = rng.integers(grid - width + 1)
    block = mask[top : top + height, left : left + width]  # a view
    if 0 < np.sum(~block) <= most:
      block[...] = True
      return True
  return False
