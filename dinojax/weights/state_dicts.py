"""State dicts, the named arrays of PyTorch checkpoints, to weights and back.

Three ways of naming: "released" (the .pth files that DINOv2's and DINOv3's hubs load),
"teacher" (their training checkpoints, with heads), "huggingface". Networks with learned
positions have DINOv2's names, those with rotary ones DINOv3's.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import numpy as np

from dinojax import errors
from dinojax.weights import dinov3, files, image_fields, model, names, wrappers

HEAD_WIDTH = 64  # of every released model; no checkpoint but Hugging Face's has it


def read(
  arrays: Mapping[str, files.Stored],
  path: str,
  *,
  others: Iterable[str] = (),
  heads: int | None = None,
  parts: tuple[str, ...] = ("backbone", *wrappers.HEADS),
) -> model.Weights:
  """Weights of named arrays, whichever naming they follow.

  Args:
    arrays: of a file, all of them.
    path: for messages.
    others: names of what in the file is no array.
    heads: attention heads; None: one for every 64 channels.
    parts: "backbone", and of the projection heads those that are there.

  Raises:
    UserError: no naming fits; names or shapes are not those of the architecture; or
      values are not finite.
  """
  naming, found = wrappers.find(arrays, others, path)
  found = {name: part for name, part in found.items() if name in parts}
  prefix, own = found["backbone"]
  own = dinov3.plain_names(own)
  backbone = _architecture(own, prefix, naming, path)
  if backbone["positions"] == "rope":
    own = dinov3.without_buffers(own, path, backbone["width"])
  found["backbone"] = wrappers.Part(prefix, own)
  width, heads = backbone["width"], backbone.get("heads", heads)
  if not heads and width % HEAD_WIDTH:
    raise errors.UserError(
      f"{path} has {width} channels, no multiple of {HEAD_WIDTH}, and does not say how"
      " many attention heads share them; give --heads, or heads= in Python"
    )
  # Of all released models the image feature is CLS.
  choices = {"heads": heads or width // HEAD_WIDTH, "pool": "cls"}
  backbone = model.architecture(backbone | choices, path)
  tables = {
    part: list(_entries(naming, backbone) if part == "backbone" else _head(own))
    for part, (_, own) in found.items()
  }
  _check(found, tables, backbone, path)
  not_finite = {}

  def load(part, name):
    before, own = found[part]
    with np.errstate(over="ignore"):  # of float64: no longer finite, an error
      x = own[name].read().astype(np.float32, copy=False)
    not_finite[before + name] = model.count_not_finite(x)
    return x

  params = {
    part: _tree(lambda name, part=part: load(part, name), table, backbone["depth"])
    for part, table in tables.items()
  }
  model.refuse_not_finite(not_finite, path)
  return model.Weights(backbone, params)


def write(weights: model.Weights, naming: str) -> dict[str, np.ndarray]:
  """Named float32 arrays of weights; only "teacher" has names for heads."""
  rotary = weights.backbone["positions"] == "rope"
  table = _entries(naming, weights.backbone)
  backbone = dict(_named(weights.params["backbone"], table))
  if rotary and naming != "huggingface":
    backbone |= dinov3.buffers(weights.backbone)
  if naming != "teacher":
    return backbone
  named = {f"backbone.{name}": x for name, x in backbone.items()}
  for part, tree in weights.params.items():
    if part != "backbone":
      table = names.head(weight_norm="v" in tree["prototypes"])
      named |= {f"{part}.{name}": x for name, x in _named(tree, table)}
  if rotary:
    return named
  # One chunk that holds all blocks: what DINOv2's code makes of block_chunks=1.
  return {name.replace(".blocks.", ".blocks.0."): x for name, x in named.items()}


def _entries(naming: str, backbone: dict) -> Iterator[names.Entry]:
  fields = ("ffn", "registers", "patch_size")
  tables = names.released, names.huggingface
  if backbone["positions"] == "rope":
    fields += ("qkv_bias", "local_norm")
    tables = dinov3.released, dinov3.huggingface
  table = tables[naming == "huggingface"]
  return table(**{name: backbone[name] for name in fields})


def _head(arrays: Mapping[str, files.Stored]) -> list[names.Entry]:
  return list(names.head(weight_norm="last_layer.weight" not in arrays))


def _architecture(arrays, prefix, naming, path) -> dict:
  """Fields of the architecture that follow from shapes and names."""
  rotary = dinov3.is_dinov3(arrays, naming)
  registers = "register_tokens"
  if naming == "huggingface":
    tokens, block = "embeddings.", "layer" if rotary else "encoder.layer"
    positions, patches = "position_embeddings", "patch_embeddings"
    patches += "" if rotary else ".projection"
  else:
    tokens, block = "", "blocks"
    positions, patches = "pos_embed", "patch_embed.proj"
    registers = "storage_tokens" if rotary else registers
  indices = [re.match(rf"{re.escape(block)}\.(\d+)\.", name) for name in arrays]
  swiglu = any(re.search(r"\.mlp\.(w12|weights_in)\.", name) for name in arrays)

  def shape(name, rank):
    name = f"{tokens}{name}"
    if name not in arrays:
      raise errors.UserError(
        f"{path} is no whole DINOv2 backbone: {prefix + name!r} is missing"
      )
    found = arrays[name].shape
    if len(found) != rank or min(found) < 1:
      raise errors.UserError(
        f"{path} is no DINOv2 backbone: {prefix + name} is {list(found)}; it must have"
        f" {rank} axes, none of them empty"
      )
    return found

  try:
    depth = 1 + max(int(match[1]) for match in indices if match)
  except ValueError:  # of max, or of int
    depth = 0
  if not 0 < depth <= len(arrays):
    reason = f"some before {prefix}{block}.{depth - 1} are missing" if depth else "none"
    raise errors.UserError(
      f"{path} is no whole DINOv2 backbone: of its blocks {reason}"
    )
  found = {
    "patch_size": shape(f"{patches}.weight", 4)[-1],
    "width": shape("cls_token", 3)[-1],
    "depth": depth,
    "registers": shape(registers, 3)[1] if f"{tokens}{registers}" in arrays else 0,
    **image_fields.usual(shape(f"{patches}.weight", 4)[1]),
  }
  if rotary:
    return found | dinov3.architecture(arrays, naming, found["width"])
  side = (shape(positions, 3)[1] - 1) ** 0.5
  others = {"pos_grid": max(round(side), 1), "ffn": "swiglu" if swiglu else "mlp"}
  return model.DEFAULTS | found | others


def _check(found, tables, backbone, path) -> None:
  """Raises UserError if names, shapes or types are not those that `tables` ask for."""
  stored = {
    part.prefix + name: x for part in found.values() for name, x in part.arrays.items()
  }
  files.check_memory(path, 4 * sum(math.prod(x.shape) for x in stored.values()))
  wanted = {}
  for name, table in tables.items():
    prefix, own = found[name]
    if name == "backbone":
      tree = model.shapes(backbone)
    else:
      tree = _head_shapes(own, prefix, backbone["width"], path)
    empty = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), tree)
    wanted |= {prefix + theirs: x.shape for theirs, x in _named(empty, table)}
  model.compare(path, wanted=wanted, found={k: x.shape for k, x in stored.items()})
  if other := sorted(name for name, x in stored.items() if not x.floating):
    raise errors.UserError(
      f"{path}: {other[0]} is {stored[other[0]].dtype}; dinojax reads floating-point"
      " weights alone: give them before they were quantized"
    )


def _head_shapes(arrays, prefix, width, path):
  """Shapes of a projection head's tree."""
  try:
    (hidden,) = arrays["mlp.0.bias"].shape
    plain = "last_layer.weight" in arrays
    last = arrays["last_layer.weight" if plain else "last_layer.weight_v"]
    prototypes, bottleneck = last.shape
  except (KeyError, ValueError) as error:
    reason = f"{error} is missing" if isinstance(error, KeyError) else "has other axes"
    raise errors.UserError(f"{path}: {prefix}* is no DINO head: {reason}") from error
  fields = dict(hidden=hidden, bottleneck=bottleneck, prototypes=prototypes)
  return model.head_shapes(width=width, weight_norm=not plain, **fields)


def _named(tree, entries) -> Iterator[tuple[str, np.ndarray]]:
  """Their names and arrays of one of our trees."""
  for entry in entries:
    ours = tree
    for key in entry.ours:
      ours = ours[key]
    for i, x in enumerate(ours if entry.stacked else [ours]):
      rows = np.split(entry.out(np.asarray(x)), len(entry.theirs))
      for name, part in zip(entry.theirs, rows, strict=True):
        yield name.format(i=i), part


def _tree(
  load: Callable[[str], np.ndarray], entries: Iterable[names.Entry], depth: int
) -> dict:
  """One of our trees, from their arrays by name."""
  tree = {}
  for entry in entries:

    def one(i, entry=entry):
      rows = [load(name.format(i=i)) for name in entry.theirs]
      return entry.back(rows[0] if len(rows) == 1 else np.concatenate(rows))

    x = np.stack([one(i) for i in range(depth)]) if entry.stacked else one(0)
    inner = tree
    for key in entry.ours[:-1]:
      inner = inner.setdefault(key, {})
    inner[entry.ours[-1]] = np.ascontiguousarray(x)
  return tree
