"""Checksums of trees of arrays: what a checkpoint holds, and which weights."""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp


@jax.jit
def _checksums(tree: Any) -> list[jax.Array]:
  sums = []
  for leaf in jax.tree.leaves(tree):
    bits = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")
    place = jnp.arange(leaf.size, dtype=jnp.uint32).reshape(leaf.shape)
    sums.append(jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32))
  return sums


def of(tree: Any) -> dict[str, int]:
  """{"teacher.backbone.norm.scale": 32 bits over an array's bits and order, ...}.

  Integer sums are the same on any mesh.
  """
  paths = [path for path, _ in jax.tree.leaves_with_path(tree)]
  names = [jax.tree_util.keystr(path, simple=True, separator=".") for path in paths]
  sums = map(int, jax.device_get(_checksums(tree)))
  return dict(zip(names, sums, strict=True))


def digest(tree: Any, *about: Any) -> str:
  """16 hex digits of a tree, and of what JSON holds of anything about it."""
  text = json.dumps([*about, of(tree)], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]
