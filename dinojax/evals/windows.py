"""Predictions of sliding windows, joined and compared with maps at their own size.

What is predicted for the patches of a window is resized bilinearly to its pixels; where
windows overlap, their mean counts; and this is resized bilinearly to the map's size, as
DINOv3's evaluation does. All three are linear, and done as one matrix for each axis.

Dimension key of patches.py, and n windows of an image, G patches along a window's side,
V values of a patch, [R, Q] rows and columns of the maps' canvas, H heads.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.sharding import Mesh

from dinojax import sharding
from dinojax.data import bad_records, dense_records, sources, window_batches
from dinojax.evals import patches

ROWS = 32  # of the canvas at a time, since all values of all its pixels are many


def bilinear(size: jax.Array, rows: int, length: jax.Array, columns: int) -> jax.Array:
  """Bilinear resizing of `length` values to `size`, as a matrix [rows, columns].

  Rows from `size` on, and columns from `length` on, are padding. Pixels lie at their
  centres, and beyond the outer ones is what they have, as in PyTorch.
  """
  place = (jnp.arange(rows) + 0.5) * length / size - 0.5
  place = jnp.clip(place, 0, length - 1)
  share = jnp.maximum(1 - jnp.abs(place[:, None] - jnp.arange(columns)), 0)
  return jnp.where(jnp.arange(rows)[:, None] < size, share, 0)


def along(
  size: jax.Array, rows: int, length: jax.Array, windows: int, *, grid: int, side: int
) -> jax.Array:
  """From windows that slide along an axis to the map's pixels: [rows, windows * G].

  Args:
    size: pixels of the map along the axis.
    rows: of the canvas.
    length: pixels of the image, where the shorter side has S.
    windows: n.
    grid: G.
    side: S.
  """
  stride = window_batches.stride(side)
  longest = side + stride * (windows - 1)
  pixel = jnp.arange(longest)
  start = jnp.minimum(jnp.arange(windows) * stride, length - side)
  place = pixel[:, None] - start  # [longest, n]
  inside = (place >= 0) & (place < side)
  of_window = bilinear(jnp.int32(side), side, jnp.int32(grid), grid)  # [S, G]
  share = of_window[jnp.clip(place, 0, side - 1)] * inside[..., None]
  share /= jnp.maximum(inside.sum(1), 1)[:, None, None]
  to_map = bilinear(size, rows, length, longest)
  return jnp.dot(to_map, share.reshape(longest, -1), precision="highest")


def measure_image(
  measure: Callable,
  values: jax.Array,
  of_pixels: jax.Array,
  size: jax.Array,
  *,
  side: int,
  tall: bool,
) -> jax.Array:
  """What a function counts of one image and one head, row by row.

  Args:
    measure: (values [r, Q, V], map [r, Q]) -> sums of any shape.
    values: [n, N, V].
    of_pixels: map, [R, Q].
    size: its rows and columns, and pixels of the image's longer side.
    side: S.
    tall: whether windows lie below each other.
  """
  grid, windows = round(values.shape[1] ** 0.5), len(values)
  values = values.reshape(windows, grid, grid, -1)
  if not tall:  # windows beside each other
    values = values.transpose(1, 0, 2, 3).reshape(grid, windows * grid, -1)
  else:
    values = values.reshape(windows * grid, grid, -1)
  counts = (windows, 1) if tall else (1, windows)
  lengths = (size[2], side) if tall else (side, size[2])
  down, across = (
    along(
      size[axis],
      of_pixels.shape[axis],
      jnp.int32(lengths[axis]),
      counts[axis],
      grid=grid,
      side=side,
    )
    for axis in (0, 1)
  )

  def of_rows(pair):
    down, of_pixels = pair
    found = jnp.einsum("rh,hwv->rwv", down, values, precision="highest")
    found = jnp.einsum("qw,rwv->rqv", across, found, precision="highest")
    return measure(found, of_pixels)

  split = lambda x: x.reshape(-1, ROWS, x.shape[1])  # noqa: E731
  return jax.lax.map(of_rows, (split(down), split(of_pixels))).sum(0)


@functools.partial(
  jax.jit, static_argnames=("apply", "predict", "measure", "tall", "mesh")
)
def measure_batch(
  params: Any,
  state: Any,
  batch: dict[str, jax.Array],
  *,
  apply: Callable,
  predict: Callable,
  measure: Callable,
  tall: bool,
  mesh: Mesh,
) -> tuple[jax.Array, jax.Array]:
  """Sums [B, H, ...] of a batch, and which images have features not finite, [B].

  Args:
    params: of `apply`.
    state: of `predict`.
    batch: windows, map and size, of `window_batches`.
    apply: (params, [B, S, S, C]) -> patches [B, N, D].
    predict: (state, patches [B, N, D]) -> values [B, N, H, V].
    measure: as of `measure_image`.
    tall: whether windows lie below each other.
    mesh: of all arrays.
  """
  windows, side = batch["windows"], batch["windows"].shape[2]
  count = windows.shape[1]
  tokens = apply(params, windows.reshape(-1, *windows.shape[2:])).astype(jnp.float32)
  bad = ~jnp.isfinite(tokens.reshape(len(windows), -1)).all(1)
  values = predict(state, tokens)
  values = values.reshape(len(windows), count, *values.shape[1:])

  def on_device(values, of_pixels, size):
    def of_image(image):
      values, of_pixels, size = image
      how = dict(side=side, tall=tall)
      of_head = lambda x: measure_image(measure, x, of_pixels, size, **how)  # noqa: E731
      return jax.lax.map(of_head, jnp.moveaxis(values, 2, 0))

    return jax.lax.map(of_image, (values, of_pixels, size))

  spec = sharding.BATCH
  mapped = jax.shard_map(on_device, mesh=mesh, in_specs=spec, out_specs=spec)
  found = mapped(values, batch["map"], batch["size"])
  return jax.lax.with_sharding_constraint((found, bad), sharding.replicated(mesh))


def evaluate(
  reader: patches.Reader,
  source: sources.Source,
  maps: dense_records.Kind,
  predict: Callable[[Any, jax.Array], jax.Array],
  state: Any,
  measure: Callable,
  *,
  description: str,
) -> Iterator[np.ndarray]:
  """Yields the sums [b, H, ...] of the readable images of each batch.

  Args:
    reader: the network.
    source: images with maps.
    maps: their kind.
    predict: as of `measure_batch`; hashable.
    state: of `predict`.
    measure: as of `measure_image`; hashable.
    description: shown before the progress bar.

  Raises:
    UserError: features are not finite.
  """
  mesh, size = reader.mesh, reader.batch_size
  rows = sharding.local_positions(mesh, size)
  reading = dict(side=reader.side, workers=reader.workers)
  log = bad_records.Log("corrupt image or map skipped")
  groups = window_batches.group(source, maps, progress=reader.progress, **reading)
  hidden = None if jax.process_index() == 0 else True  # None: unless no terminal
  with tqdm.tqdm(
    desc=description, total=len(source), leave=False, disable=hidden
  ) as bar:
    for slide, part in groups:
      batches = window_batches.open_batches(
        part, maps, slide, batch_size=size, rows=rows, **reading
      )
      try:
        for step, batch in enumerate(batches):
          for _, message in bad_records.messages(part, batch.pop("bad_records")):
            log.add(message)
          batch = sharding.put_batch(mesh, batch, rows, size)
          found, bad = jax.device_get(
            measure_batch(
              *(reader.params, state, batch),
              apply=reader.apply,
              predict=predict,
              measure=measure,
              tall=slide.tall,
              mesh=mesh,
            )
          )
          if bad.any():
            patches.refuse_not_finite(part, step * size + int(bad.argmax()))
          yield found[: len(part) - step * size]
          bar.update(min(size, len(part) - step * size))
          reader.progress()
      finally:
        batches.close()
