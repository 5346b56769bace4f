"""Parameter names of released DINOv2 checkpoints and of Hugging Face's, beside ours.

Facts from the public DINOv2 code (Apache-2.0) and from `transformers`. Both keep a
linear layer as [out, in] where we have [in, out], each block by itself where ours are
stacked, and the patch embedding as a convolution [D, 3, p, p].
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import einops
import numpy as np

KINDS = ("weight", "bias")
FFN = {"mlp": ("fc1", "fc2"), "swiglu": ("w12", "w3")}  # ours, and the released names
HUGGINGFACE_SWIGLU = ("weights_in", "weights_out")


class Entry(NamedTuple):
  """One of our parameters in a checkpoint.

  ours: path in our tree. theirs: name, or several whose rows are joined in this order;
  "{i}" stands for the block. out, back: our array (of one block) to theirs and back.
  """

  ours: tuple[str, ...]
  theirs: tuple[str, ...]
  out: Callable[[np.ndarray], np.ndarray]
  back: Callable[[np.ndarray], np.ndarray]

  @property
  def stacked(self) -> bool:
    """Whether it belongs to the blocks."""
    return self.ours[0] == "blocks"


def same(x: np.ndarray) -> np.ndarray:
  """For what both keep alike."""
  return x


def linear(ours: tuple, *theirs: str) -> Iterator[Entry]:
  """Weight and bias of a linear layer."""
  weights, biases = ([f"{name}.{kind}" for name in theirs] for kind in KINDS)
  yield Entry((*ours, "kernel"), tuple(weights), np.transpose, np.transpose)
  yield Entry((*ours, "bias"), tuple(biases), same, same)


def norm(ours: tuple, theirs: str) -> Iterator[Entry]:
  """Scale and bias of a LayerNorm."""
  yield Entry((*ours, "scale"), (f"{theirs}.weight",), same, same)
  yield Entry((*ours, "bias"), (f"{theirs}.bias",), same, same)


def patch_embed(theirs: str, patch_size: int) -> Iterator[Entry]:
  """The patch embedding, a convolution there."""

  def out(x):
    return einops.rearrange(x, "(p q c) d -> d c p q", p=patch_size, q=patch_size)

  def back(x):
    return einops.rearrange(x, "d c p q -> (p q c) d")

  yield Entry(("patch_embed", "kernel"), (f"{theirs}.weight",), out, back)
  yield Entry(("patch_embed", "bias"), (f"{theirs}.bias",), same, same)


def released(*, ffn: str, registers: int, patch_size: int) -> Iterator[Entry]:
  """A backbone's entries as DINOv2 names them, without chunks of blocks."""
  tokens = ("cls_token", "mask_token", "pos_embed", "register_tokens")
  for name in tokens if registers else tokens[:-1]:
    yield Entry((name,), (name,), same, same)
  yield from patch_embed("patch_embed.proj", patch_size)
  for name in ("norm1", "norm2"):
    yield from norm(("blocks", name), f"blocks.{{i}}.{name}")
  for name in ("qkv", "proj"):
    yield from linear(("blocks", "attn", name), f"blocks.{{i}}.attn.{name}")
  for name in ("ls1", "ls2"):
    gamma = f"blocks.{{i}}.{name}.gamma"
    yield Entry(("blocks", name, "gamma"), (gamma,), same, same)
  for name in FFN[ffn]:
    yield from linear(("blocks", "mlp", name), f"blocks.{{i}}.mlp.{name}")
  yield from norm(("norm",), "norm")


def huggingface(*, ffn: str, registers: int, patch_size: int) -> Iterator[Entry]:
  """A backbone's entries as Dinov2Model and Dinov2WithRegistersModel name them."""
  tokens = {
    "cls_token": "cls_token",
    "mask_token": "mask_token",
    "pos_embed": "position_embeddings",
  }
  if registers:
    tokens["register_tokens"] = "register_tokens"
  for ours, theirs in tokens.items():
    yield Entry((ours,), (f"embeddings.{theirs}",), same, same)
  yield from patch_embed("embeddings.patch_embeddings.projection", patch_size)
  at = "encoder.layer.{i}"
  for name in ("norm1", "norm2"):
    yield from norm(("blocks", name), f"{at}.{name}")
  qkv = [f"{at}.attention.attention.{name}" for name in ("query", "key", "value")]
  yield from linear(("blocks", "attn", "qkv"), *qkv)
  yield from linear(("blocks", "attn", "proj"), f"{at}.attention.output.dense")
  for ours, theirs in (("ls1", "layer_scale1"), ("ls2", "layer_scale2")):
    gamma = f"{at}.{theirs}.lambda1"
    yield Entry(("blocks", ours, "gamma"), (gamma,), same, same)
  ffn_names = HUGGINGFACE_SWIGLU if ffn == "swiglu" else FFN[ffn]
  for ours, theirs in zip(FFN[ffn], ffn_names, strict=True):
    yield from linear(("blocks", "mlp", ours), f"{at}.mlp.{theirs}")
  yield from norm(("norm",), "layernorm")


def head(*, weight_norm: bool) -> Iterator[Entry]:
  """A head's entries, behind "dino_head." or "ibot_head." in training checkpoints."""
  for index, name in enumerate(("fc1", "fc2", "fc3")):
    yield from linear((name,), f"mlp.{2 * index}")
  if not weight_norm:
    kernel = ("prototypes", "kernel")
    yield Entry(kernel, ("last_layer.weight",), np.transpose, np.transpose)
    return
  v, gain = ("prototypes", "v"), ("prototypes", "gain")
  yield Entry(v, ("last_layer.weight_v",), np.transpose, np.transpose)
  yield Entry(gain, ("last_layer.weight_g",), lambda x: x[:, None], lambda x: x[:, 0])
