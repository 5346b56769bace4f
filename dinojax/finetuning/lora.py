"""LoRA: low-rank updates of the attention's kernels (arXiv:2106.09685).

A kernel W [H, F] becomes W + alpha / r * A B, with A [H, r] and B [r, F]. B starts at
0: training starts from the network as it was. Queries, keys and values share A, since
they are one kernel here.

The sum is computed before the network runs, so that the network knows nothing of it and
its merged weights are plain weights. That costs memory for these kernels and their
gradient, a third of the weights, while moments are kept of A and B alone.

Blocks are stacked: every array has a leading axis L of layers.
"""

from typing import Any

import jax
import jax.numpy as jnp

KERNELS = ("qkv", "proj")  # of blocks/attn


def first_adapters(params: Any, *, rank: int, key: jax.Array) -> Any:
  """Adapters that change nothing yet, in the place that their kernels have.

  Args:
    params: of the backbone.
    rank: r.
    key: of A, which is normal with deviation 1 / sqrt(H).

  Returns:
    {"blocks": {"attn": {"qkv": {"a": [L, H, r], "b": [L, r, F]}, "proj": ...}}}.
  """
  adapters = {}
  for number, name in enumerate(KERNELS):
    layers, inputs, outputs = params["blocks"]["attn"][name]["kernel"].shape
    noise = jax.random.normal(jax.random.fold_in(key, number), (layers, inputs, rank))
    b = jnp.zeros((layers, rank, outputs))
    adapters[name] = {"a": noise * inputs**-0.5, "b": b}
  return {"blocks": {"attn": adapters}}


def merge(params: Any, adapters: Any, *, scale: float) -> Any:
  """The backbone's parameters with the adapters added. scale: alpha / r."""
  attention = dict(params["blocks"]["attn"])
  for name, adapter in adapters["blocks"]["attn"].items():
    update = jnp.einsum("lhr,lrf->lhf", adapter["a"], adapter["b"], precision="highest")
    kernel = attention[name]["kernel"] + scale * update
    attention[name] = {**attention[name], "kernel": kernel}
  return {**params, "blocks": {**params["blocks"], "attn": attention}}
