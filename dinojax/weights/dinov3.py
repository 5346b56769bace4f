"""DINOv3's parameter names, released and Hugging Face's, and the network they tell of.

Facts from the public code of `transformers` and from the released files. As in names.py
a linear layer is [out, in] there. Of two things that released files hold we keep no
array: the periods of RoPE, which follow from the width of a head, and the mask of the
keys' bias.
"""

import re
from collections.abc import Iterator, Mapping

import numpy as np

from dinojax import errors
from dinojax.networks import blocks, rope
from dinojax.weights import files, names

NORM_EPS = 1e-5  # of every released model; .pth files do not say
PERIODS, MASK = "rope_embed.periods", "attn.qkv.bias_mask"
# Mean and deviation of the channels of images, of files whose name holds the key. Those
# trained on LVD-1689M have ImageNet's.
STATISTICS = {
  "sat493m": {"mean": (0.430, 0.411, 0.296), "std": (0.213, 0.156, 0.143)},
}
POS_GRID = 14  # 224 / 16: released models see any size


def is_dinov3(arrays: Mapping[str, files.Stored], naming: str) -> bool:
  """Whether names of a backbone, without prefix, are DINOv3's and not DINOv2's."""
  if naming == "huggingface":
    return any(name.startswith("layer.") for name in arrays)
  return any(
    name in ("storage_tokens", PERIODS) or name.endswith(MASK) for name in arrays
  )


def statistics(file_name: str, *, channels: int) -> dict:
  """The `STATISTICS` that the name of a file tells of; {} if it does not, or no RGB."""
  known = STATISTICS if channels == 3 else {}
  return next((x for key, x in known.items() if key in file_name.lower()), {})


def plain_names(arrays: Mapping[str, files.Stored]) -> dict[str, files.Stored]:
  """Arrays by names without the "model." that transformers 5 has before its blocks."""
  return {re.sub(r"^model\.layer\.", "layer.", name): x for name, x in arrays.items()}


def released(
  *, ffn: str, registers: int, patch_size: int, qkv_bias: str, local_norm: bool
) -> Iterator[names.Entry]:
  """A backbone's entries as the .pth files name them."""
  yield names.Entry(("cls_token",), ("cls_token",), names.same, names.same)
  yield names.Entry(("mask_token",), ("mask_token",), names.same, names.same)
  if registers:
    ours, theirs = ("register_tokens",), ("storage_tokens",)
    yield names.Entry(ours, theirs, names.same, names.same)
  yield from names.patch_embed("patch_embed.proj", patch_size)
  weights, bias = names.linear(("blocks", "attn", "qkv"), "blocks.{i}.attn.qkv")
  yield weights
  if any(blocks.BIASED[qkv_bias]):
    yield bias
  yield from names.linear(("blocks", "attn", "proj"), "blocks.{i}.attn.proj")
  for name in ("ls1", "ls2"):
    gamma = f"blocks.{{i}}.{name}.gamma"
    yield names.Entry(("blocks", name, "gamma"), (gamma,), names.same, names.same)
  for name in ("norm1", "norm2"):
    yield from names.norm(("blocks", name), f"blocks.{{i}}.{name}")
  table = {"fc1": ["fc1"], "fc2": ["fc2"]}
  if ffn == "swiglu":
    table = {"w12": ["w1", "w2"], "w3": ["w3"]}
  for ours, theirs in table.items():
    theirs = [f"blocks.{{i}}.mlp.{name}" for name in theirs]
    yield from names.linear(("blocks", "mlp", ours), *theirs)
  yield from names.norm(("norm",), "norm")
  if local_norm:
    yield from names.norm(("local_norm",), "local_cls_norm")


def huggingface(
  *, ffn: str, registers: int, patch_size: int, qkv_bias: str, local_norm: bool
) -> Iterator[names.Entry]:
  """A backbone's entries as DINOv3ViTModel names them; it has no `local_norm`."""
  del local_norm
  for ours, theirs in (("cls_token", "cls_token"), ("register_tokens",) * 2):
    if registers or ours == "cls_token":
      theirs = (f"embeddings.{theirs}",)
      yield names.Entry((ours,), theirs, names.same, names.same)
  yield names.Entry(
    ("mask_token",), ("embeddings.mask_token",), lambda x: x[None], lambda x: x[0]
  )
  yield from names.patch_embed("embeddings.patch_embeddings", patch_size)
  at, qkv = "layer.{i}", ("blocks", "attn", "qkv")
  projections = [f"{at}.attention.{name}_proj" for name in "qkv"]
  weights, bias = names.linear(qkv, *projections)
  yield weights
  if qkv_bias == "all":
    yield bias
  elif qkv_bias == "no_key":
    theirs = (f"{projections[0]}.bias", f"{projections[2]}.bias")
    yield names.Entry((*qkv, "bias"), theirs, _without_key, _with_key)
  yield from names.linear(("blocks", "attn", "proj"), f"{at}.attention.o_proj")
  for ours, theirs in (("ls1", "layer_scale1"), ("ls2", "layer_scale2")):
    gamma = (f"{at}.{theirs}.lambda1",)
    yield names.Entry(("blocks", ours, "gamma"), gamma, names.same, names.same)
  for name in ("norm1", "norm2"):
    yield from names.norm(("blocks", name), f"{at}.{name}")
  table = {"fc1": ["up_proj"], "fc2": ["down_proj"]}
  if ffn == "swiglu":
    table = {"w12": ["gate_proj", "up_proj"], "w3": ["down_proj"]}
  for ours, theirs in table.items():
    theirs = [f"{at}.mlp.{name}" for name in theirs]
    yield from names.linear(("blocks", "mlp", ours), *theirs)
  yield from names.norm(("norm",), "norm")


def _without_key(bias: np.ndarray) -> np.ndarray:
  query, _, value = np.split(bias, 3)
  return np.concatenate([query, value])


def _with_key(bias: np.ndarray) -> np.ndarray:
  query, value = np.split(bias, 2)
  return np.concatenate([query, np.zeros_like(query), value])


def architecture(arrays: Mapping[str, files.Stored], naming: str, width: int) -> dict:
  """Fields of DINOv3's networks alone that follow from names and shapes.

  "heads" is among them where the file tells it.
  """
  ours = naming == "released"
  gated = any(re.search(r"\.mlp\.(w1|gate_proj)\.", name) for name in arrays)
  up = ("w1" if gated else "fc1") if ours else "up_proj"
  first = next((x for n, x in arrays.items() if n.endswith(f".mlp.{up}.weight")), None)
  hidden = first.shape[0] if first is not None and len(first.shape) == 2 else 0
  ffn = "swiglu" if gated else "mlp"
  usual = blocks.hidden_width(width, ffn=ffn, ffn_width=0)
  found = {
    "positions": "rope",
    "pos_grid": POS_GRID,
    "ffn": ffn,
    "ffn_width": 0 if hidden == usual else hidden,
    "norm_eps": NORM_EPS,
    "qkv_bias": _biased(arrays, ours),
    "local_norm": any(name.startswith("local_cls_norm.") for name in arrays),
  }
  periods = arrays.get(PERIODS)
  if periods is not None and len(periods.shape) == 1 and periods.shape[0]:
    found["heads"] = max(width // (4 * periods.shape[0]), 1)
  return found


def _biased(arrays, ours: bool) -> str:
  query, key = ("attn.qkv.bias", None) if ours else ("q_proj.bias", "k_proj.bias")
  if not any(name.endswith(query) for name in arrays):
    return "none"
  # Without its mask, too: no released network has a bias of keys.
  return "all" if key and any(name.endswith(key) for name in arrays) else "no_key"


def without_buffers(
  arrays: Mapping[str, files.Stored], path: str, width: int
) -> dict[str, files.Stored]:
  """The parameters alone of arrays that released names have.

  Args:
    arrays: of a backbone.
    path: for the error.
    width: D.

  Raises:
    UserError: the periods or a mask are other than ours.
  """
  kept = {}
  for name, x in arrays.items():
    if name != PERIODS and not name.endswith(MASK):
      kept[name] = x
    elif not _is_ours(name, x, width):
      what = "bias" if name.endswith(MASK) else "periods of the rotary positions"
      raise errors.UserError(
        f"{path}: {name} is not what every released DINOv3 has; dinojax has no other"
        f" {what}"
      )
  return kept


def _is_ours(name: str, x: files.Stored, width: int) -> bool:
  """Whether periods or a mask are those that we compute."""
  if name != PERIODS:
    wanted = [np.repeat(np.float32(blocks.BIASED["no_key"]), width)]
  elif len(x.shape) == 1 and 0 < 4 * x.shape[0] <= width:
    dtypes = ("float32", "bfloat16")
    wanted = [rope.periods(4 * x.shape[0], dtype=dtype) for dtype in dtypes]
  else:
    return False
  if tuple(x.shape) != wanted[0].shape:
    return False
  return any(np.allclose(np.float32(x.read()), w, 1e-3) for w in wanted)


def buffers(backbone: dict) -> dict[str, np.ndarray]:
  """What released names hold beside parameters: periods in bfloat16's values, masks."""
  head = backbone["width"] // backbone["heads"]
  named = {PERIODS: rope.periods(head, dtype="bfloat16")}
  if backbone["qkv_bias"] == "no_key":
    mask = np.repeat(np.float32(blocks.BIASED["no_key"]), backbone["width"])
    named |= {f"blocks.{i}.{MASK}": mask for i in range(backbone["depth"])}
  return named
