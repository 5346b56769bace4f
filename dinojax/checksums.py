"""Checksums of trees of arrays: what a checkpoint holds, and which weights."""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PIECE = 2**18  # elements that are summed at once on the host; they fit its cache


@jax.jit
def _on_devices(tree: Any) -> list[jax.Array]:
  sums = []
  for leaf in jax.tree.leaves(tree):
    bits = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")
    place = jnp.arange(leaf.size, dtype=jnp.uint32).reshape(leaf.shape)
    sums.append(jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32))
  return sums


def _on_host(leaf: jax.Array) -> int:
  bits = np.ascontiguousarray(leaf).reshape(-1).view(f"uint{8 * leaf.dtype.itemsize}")
  total = 0
  for start in range(0, len(bits), PIECE):
    piece = bits[start : start + PIECE].astype(np.uint32)
    place = np.arange(start, start + len(piece)).astype(np.uint32)
    total += int(np.sum(piece * (2 * place + 1), dtype=np.uint32))
  return total % 2**32


def is_on_host(leaf: Any) -> bool:
  """Whether NumPy reads it where it is, not from devices or other hosts."""
  if isinstance(leaf, np.ndarray):
    return leaf.dtype.itemsize <= 4  # 64 bits become 32 on devices
  return (
    isinstance(leaf, jax.Array)
    and leaf.is_fully_addressable
    and all(device.platform == "cpu" for device in leaf.devices())
  )


def of(tree: Any) -> dict[str, int]:
  """{"teacher.backbone.norm.scale": 32 bits over an array's bits and order, ...}.

  Integer sums are the same on any mesh. Where all arrays are in this host's memory,
  NumPy adds them up: to trace and compile a program for it takes longer.
  """
  leaves = jax.tree.leaves(tree)
  paths = [path for path, _ in jax.tree.leaves_with_path(tree)]
  names = [jax.tree_util.keystr(path, simple=True, separator=".") for path in paths]
  if all(map(is_on_host, leaves)):
    sums = map(_on_host, leaves)
  else:
    sums = map(int, jax.device_get(_on_devices(leaves)))
  return dict(zip(names, sums, strict=True))


def digest(tree: Any, *about: Any) -> str:
  """16 hex digits of a tree, and of what JSON holds of anything about it."""
  text = json.dumps([*about, of(tree)], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]
