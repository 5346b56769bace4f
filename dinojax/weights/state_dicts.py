"""Named arrays, as PyTorch checkpoints hold them, to weights and back.

Three ways of naming: "released" (the .pth files that DINOv2's hub loads), "teacher"
(its training checkpoints: chunked blocks, and heads), "huggingface".
"""

import re
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from dinojax import errors
from dinojax.weights import model, names

HEAD_WIDTH = 64  # of every released model; no checkpoint but Hugging Face's says it
CHUNKED = re.compile(r"\bblocks\.\d+\.(\d+)\.")
# How a weight norm is named since PyTorch 2: gain and direction.
PARAMETRIZED = {
  "parametrizations.weight.original0": "weight_g",
  "parametrizations.weight.original1": "weight_v",
}
HEADS = ("dino_head", "ibot_head")


def read(
  arrays: Mapping[str, np.ndarray],
  path: str,
  *,
  heads: int | None = None,
  pool: str | None = None,
) -> model.Weights:
  """Weights of named arrays, whichever naming they follow.

  Args:
    arrays: of a file, all of them.
    path: for error messages.
    heads: attention heads; None: one for every 64 channels.
    pool: image feature, "cls" or "gap"; None: "cls", as released models have it.

  Raises:
    UserError: no naming fits, or names or shapes are not those of the architecture.
  """
  arrays = {_plain(name): x for name, x in arrays.items()}
  prefix = "backbone." if "backbone.cls_token" in arrays else ""
  naming = "huggingface" if "embeddings.cls_token" in arrays else "released"
  if naming == "released" and f"{prefix}cls_token" not in arrays:
    some = ", ".join(list(arrays)[:3]) or "nothing"
    raise errors.UserError(
      f"{path} holds no DINOv2 backbone: there is no cls_token, but {some} ...; give a"
      " backbone's file, a training run's teacher, or a Dinov2Model"
    )
  backbone = {
    **_architecture(arrays, prefix, naming, path),
    "pool": pool or "cls",
  }
  width = backbone["width"]
  if not heads and width % HEAD_WIDTH:
    raise errors.UserError(
      f"{path} has {width} channels, no multiple of {HEAD_WIDTH}, and does not say how"
      " many attention heads share them; give --heads, or heads= in Python"
    )
  backbone["heads"] = heads or width // HEAD_WIDTH
  if width % backbone["heads"]:
    raise errors.UserError(f"heads={heads} must divide the {width} channels of {path}")

  tables = {"backbone": (prefix, list(_entries(naming, backbone)))}
  for head in HEADS:
    if any(name.startswith(f"{head}.") for name in arrays):
      tables[head] = (f"{head}.", list(names.head()))
  wanted = _wanted_shapes(arrays, tables, backbone, path)
  model.compare(path, wanted=wanted, found={k: x.shape for k, x in arrays.items()})
  params = {
    part: _tree(arrays, at, entries, backbone["depth"])
    for part, (at, entries) in tables.items()
  }
  return model.Weights(backbone, params)


def write(weights: model.Weights, naming: str) -> dict[str, np.ndarray]:
  """Named float32 arrays of weights; only "teacher" has names for heads."""
  entries = _entries(naming, weights.backbone)
  if naming != "teacher":
    return dict(_named(weights.params["backbone"], entries))
  named = {}
  for part, tree in weights.params.items():
    table = entries if part == "backbone" else names.head()
    named |= {f"{part}.{name}": x for name, x in _named(tree, table)}
  # One chunk that holds all blocks: what the reference makes of block_chunks=1.
  return {name.replace(".blocks.", ".blocks.0."): x for name, x in named.items()}


def _plain(name: str) -> str:
  """A name without chunks of blocks, and with PyTorch's older words for weight norm."""
  for new, old in PARAMETRIZED.items():
    name = name.replace(new, old)
  return CHUNKED.sub(r"blocks.\1.", name)


def _entries(naming: str, backbone: dict) -> Iterator[names.Entry]:
  table = names.huggingface if naming == "huggingface" else names.released
  return table(**{k: backbone[k] for k in ("ffn", "registers", "patch_size")})


def _architecture(arrays, prefix, naming, path) -> dict:
  """Fields of the architecture that shapes and names tell."""
  if naming == "huggingface":
    tokens, block = "embeddings.", "encoder.layer"
    positions, patches = "position_embeddings", "patch_embeddings.projection"
  else:
    tokens, block = prefix, f"{prefix}blocks"
    positions, patches = "pos_embed", "patch_embed.proj"
  indices = [re.match(rf"{re.escape(block)}\.(\d+)\.", name) for name in arrays]
  swiglu = any(re.search(r"\.mlp\.(w12|weights_in)\.", name) for name in arrays)
  registers = arrays.get(f"{tokens}register_tokens")
  try:
    grid = round((arrays[f"{tokens}{positions}"].shape[1] - 1) ** 0.5)
    return {
      "patch_size": arrays[f"{tokens}{patches}.weight"].shape[-1],
      "pos_grid": grid,
      "width": arrays[f"{tokens}cls_token"].shape[-1],
      "depth": 1 + max(int(match[1]) for match in indices if match),
      "ffn": "swiglu" if swiglu else "mlp",
      "registers": 0 if registers is None else registers.shape[1],
    }
  except (KeyError, ValueError, IndexError) as error:
    reason = f"{error} is missing" if isinstance(error, KeyError) else "no blocks"
    raise errors.UserError(f"{path} is no whole DINOv2 backbone: {reason}") from error


def _wanted_shapes(arrays, tables, backbone, path) -> dict[str, tuple]:
  """Names and shapes of all that `tables` ask for."""
  wanted = {}
  for part, (at, entries) in tables.items():
    if part == "backbone":
      tree = model.shapes(backbone)
    else:
      try:
        hidden = arrays[f"{at}mlp.0.bias"].size
        prototypes, bottleneck = arrays[f"{at}last_layer.weight_v"].shape
      except KeyError as error:
        raise errors.UserError(f"{path} does not fit: {error} is missing") from error
      tree = model.head_shapes(
        hidden=hidden,
        bottleneck=bottleneck,
        prototypes=prototypes,
        width=backbone["width"],
      )
    empty = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), tree)
    wanted |= {at + name: x.shape for name, x in _named(empty, entries)}
  return wanted


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


def _tree(arrays, at, entries, depth) -> dict:
  """One of our trees from their arrays."""
  tree = {}
  for entry in entries:

    def one(i, entry=entry):
      rows = [arrays[at + name.format(i=i)] for name in entry.theirs]
      joined = rows[0] if len(rows) == 1 else np.concatenate(rows)
      return entry.back(joined).astype(np.float32)

    x = np.stack([one(i) for i in range(depth)]) if entry.stacked else one(0)
    inner = tree
    for key in entry.ours[:-1]:
      inner = inner.setdefault(key, {})
    inner[entry.ours[-1]] = np.ascontiguousarray(x)
  return tree
