"""Weights of a backbone and their architecture, in our own layout.

Whatever is read from a file is compared with the architecture: every parameter is
there, of its shape, finite, and nothing is left over.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinojax import errors
from dinojax.networks import blocks, heads, positions, vit
from dinojax.weights import image_fields, json_objects

# Fields of VisionTransformer that make an architecture; the others are how it is run.
ARCHITECTURE = (
  *("patch_size", "pos_grid", "width", "depth", "heads", "ffn", "registers", "pool"),
  *("positions", "ffn_width", "norm_eps", "qkv_bias", "local_norm", "rope_periods"),
  *("mean", "std", "image_dtype", "max_value"),
)
# Values of fields that older checkpoints lack.
DEFAULTS = {
  field.name: field.default
  for field in dataclasses.fields(vit.VisionTransformer)
  if field.name in ARCHITECTURE and field.default is not dataclasses.MISSING
}

LARGEST = 2**14  # of the numbers among them
LEAST = {"registers": 0, "ffn_width": 0}  # others: 1
CHOICES = {
  "ffn": ("mlp", "swiglu"),
  "pool": ("cls", "gap"),
  "positions": ("learned", "rope"),
  "qkv_bias": tuple(blocks.BIASED),
  "local_norm": (False, True),
  "rope_periods": ("float32", "bfloat16"),
}

SHOWN = 10  # names in an error
LARGEST_CROP = 224  # released weights are of 518 pixels, and evaluated at 224


@dataclasses.dataclass(frozen=True)
class Weights:
  """Parameters and their architecture.

  backbone: the fields of ARCHITECTURE. params: {"backbone": tree} and perhaps
  "dino_head" and "ibot_head"; leaves are NumPy or jax arrays, blocks stacked. sizes:
  {"resize", "crop"}, pixels of the images that are evaluated; {} if not known.
  """

  backbone: dict[str, Any]
  params: dict[str, Any]
  sizes: dict[str, int] = dataclasses.field(default_factory=dict)


def usual_crop(*, patch_size: int, pos_grid: int) -> int:
  """Pixels of a side of images, where no file says: the weights' own, at most 224."""
  largest = max(LARGEST_CROP // patch_size, 1) * patch_size
  return min(patch_size * pos_grid, largest)


def usual_resize(crop: int) -> int:
  """Pixels of the shorter side before the crop, where no file says: 256 for 224."""
  return round(crop * 8 / 7)


def module(backbone: dict, *, dtype: str, attention: str) -> vit.VisionTransformer:
  """The network of an architecture, for use without training."""
  return vit.VisionTransformer(
    **backbone,
    drop_path=0.0,
    layerscale_init=1.0,
    dtype=dtype,
    remat="none",
    unroll=1,
    attention=attention,
  )


def shapes(backbone: dict) -> Any:
  """The backbone's parameters as a tree of `jax.ShapeDtypeStruct`."""
  side = backbone["patch_size"] * backbone["pos_grid"]
  shape = (1, side, side, len(backbone["mean"]))
  lists = {name: tuple(backbone[name]) for name in ("mean", "std")}
  net = module(backbone | lists, dtype="float32", attention="xla")
  return _shapes(net, (jax.ShapeDtypeStruct(shape, jnp.float32),), (None,))


def head_shapes(*, width: int, **fields: Any) -> Any:
  """A head's parameters, as `shapes`.

  Args:
    width: of the backbone.
    **fields: of `heads.DINOHead`.
  """
  net = heads.DINOHead(**fields, dtype="float32")
  return _shapes(net, jax.ShapeDtypeStruct((1, width), jnp.float32))


def _shapes(net: Any, *inputs: Any) -> Any:
  """Parameters of a network for inputs of these shapes, in dicts of the caller's."""
  return jax.tree.map(lambda x: x, _traced_shapes(net, inputs))


@functools.lru_cache(maxsize=32)  # A trace takes a third of a second.
def _traced_shapes(net, inputs):
  return jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]


def flatten(tree: Any) -> dict[str, Any]:
  """{"blocks.attn.qkv.kernel": leaf, ...} of a nested dict."""
  keystr = functools.partial(jax.tree_util.keystr, simple=True, separator=".")
  return {keystr(path): x for path, x in jax.tree.leaves_with_path(tree)}


def architecture(fields: Any, path: str) -> dict[str, Any]:
  """The fields of ARCHITECTURE among `fields`; UserError names one that cannot be."""
  if not isinstance(fields, dict):
    raise errors.UserError(f"{path} has no backbone={{...}}")
  fields = {name: fields.get(name, DEFAULTS.get(name)) for name in ARCHITECTURE}
  for name, value in fields.items():
    least = LEAST.get(name, 1)
    if name in CHOICES:
      fits, wanted = value in CHOICES[name], " or ".join(map(str, CHOICES[name]))
    elif name == "norm_eps":
      fits, wanted = type(value) is float and 0 < value <= 0.1, "above 0, at most 0.1"
    elif name in image_fields.FIELDS:
      fits, wanted = image_fields.fits(name, fields)
    else:
      fits = type(value) is int and least <= value <= LARGEST
      wanted = f"a whole number from {least} to {LARGEST}"
    if not fits:
      raise errors.UserError(
        f"{path} has {name}={json_objects.shown(value)}; it must be {wanted}"
      )
  if fields["width"] % fields["heads"]:
    raise errors.UserError(
      f"{path}: heads={fields['heads']} must divide the {fields['width']} channels"
    )
  if fields["positions"] == "rope" and fields["width"] // fields["heads"] % 4:
    raise errors.UserError(
      f"{path}: heads={fields['heads']} gives each {fields['width'] // fields['heads']}"
      " channels; rotary positions need a multiple of 4"
    )
  return in_one_form(fields)


def in_one_form(fields: dict) -> dict:
  """The same architecture with ffn_width=0 where it is the usual one, and tuples."""
  usual = blocks.hidden_width(fields["width"], ffn=fields["ffn"], ffn_width=0)
  own = fields["ffn_width"]
  own_form = image_fields.in_one_form(fields)
  return {**fields, "ffn_width": 0 if own == usual else own, **own_form}


def check_shapes(backbone: dict, params: dict, path: str) -> None:
  """Raises UserError that lists what in {"backbone": tree, ...} does not fit."""
  wanted = {"backbone": shapes(backbone)}
  wanted |= {k: v for k, v in params.items() if k != "backbone"}
  wanted, found = (
    {name: tuple(getattr(x, "shape", ())) for name, x in flatten(tree).items()}
    for tree in (wanted, params)
  )
  compare(path, wanted=wanted, found=found)


def count_not_finite(x: np.ndarray) -> int:
  """How many values are NaN or infinite; 0.2 s for a GiB of good ones."""
  # Smallest and largest value carry both along, without an array of booleans.
  if not x.size or (np.isfinite(x.min()) and np.isfinite(x.max())):
    return 0
  return int((~np.isfinite(x)).sum())


def refuse_not_finite(counts: dict[str, int], path: str) -> None:
  """Raises UserError if a parameter has values that are not finite.

  Args:
    counts: how many, by name.
    path: of the weights.
  """
  wrong = {name: count for name, count in counts.items() if count}
  if wrong:
    name, count = next(iter(wrong.items()))
    more = f", and {len(wrong) - 1} more parameters" if len(wrong) > 1 else ""
    raise errors.UserError(
      f"{path}: {errors.printable(name)} has {count:,} values that are not finite (NaN"
      f" or infinite){more}; the file is damaged, or its training diverged: give other"
      " weights"
    )


def compare(path: str, *, wanted: dict[str, tuple], found: dict[str, tuple]) -> None:
  """Raises UserError that lists all shapes, by name, that differ."""
  wrong = [f"{name} is missing" for name in wanted.keys() - found.keys()]
  left_over = map(errors.printable, found.keys() - wanted.keys())
  wrong += [f"{name} is left over" for name in left_over]
  wrong += [
    f"{name} is {list(found[name])}, not {list(wanted[name])}"
    for name in wanted.keys() & found.keys()
    if found[name] != wanted[name]
  ]
  if wrong:
    first = "; ".join(sorted(wrong)[:SHOWN])
    more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    raise errors.UserError(f"{path} does not fit its architecture: {first}{more}")


def with_pos_grid(weights: Weights, pos_grid: int) -> Weights:
  """The same weights with their position embeddings resized for good.

  By the network's own rule (positions.py): the embeddings that it would compute for
  images of that grid are stored. Rotary positions have none.
  """
  if pos_grid == weights.backbone["pos_grid"]:
    return weights
  architecture = {**weights.backbone, "pos_grid": pos_grid}
  backbone = dict(weights.params["backbone"])
  if "pos_embed" not in backbone:
    return dataclasses.replace(weights, backbone=architecture)
  pos_embed = np.asarray(backbone["pos_embed"])[0]
  patches = positions.resize(
    pos_embed[1:], pos_grid, pos_grid, antialias=weights.backbone["registers"] > 0
  )
  backbone["pos_embed"] = np.concatenate([pos_embed[:1], np.asarray(patches)])[None]
  return dataclasses.replace(
    weights,
    backbone=architecture,
    params={**weights.params, "backbone": backbone},
  )


def with_choices(
  weights: Weights, path: str, *, heads: int | None, **choices: str | None
) -> Weights:
  """Weights that a file holds in full, with fields that the caller chooses.

  Args:
    weights: of the file.
    path: of the file, for the error.
    heads: what the caller takes the number of attention heads for; None: nothing.
    **choices: values of ARCHITECTURE's fields; None: that of the file.

  Raises:
    UserError: `heads` is not that of the file.
  """
  own = weights.backbone["heads"]
  if heads and heads != own:
    raise errors.UserError(
      f"{path} has {own} attention heads and not {heads}: leave heads out, or"
      " correct the config"
    )
  chosen = {name: x for name, x in choices.items() if x}
  return dataclasses.replace(weights, backbone={**weights.backbone, **chosen})


def fit(
  weights: Weights, wanted: dict, path: str, *, group: str = "config.backbone"
) -> Any:
  """The backbone's parameters for an architecture.

  Position embeddings are resized to it. A final norm of local crops, which no file of
  Hugging Face holds, starts as that of the others.

  Args:
    weights: of any file.
    wanted: the fields of ARCHITECTURE, such as `config.backbone`.
    path: of the weights, for the error.
    group: of the config that `wanted` is, likewise.

  Raises:
    UserError: another architecture, but for grid, image feature, periods and the final
      norm of local crops.
  """
  wanted = in_one_form({name: wanted[name] for name in ARCHITECTURE})
  counts = [len(x["mean"]) for x in (weights.backbone, wanted)]
  if counts[0] != counts[1]:
    raise errors.UserError(
      f"{path} is another network: of {counts[0]} channels, and {group} of {counts[1]}"
      " (config.data.channels)"
    )
  free = ("pos_grid", "pool", "local_norm", "rope_periods")
  differing = [
    f"{name}={weights.backbone[name]} there and {group}.{name}={wanted[name]}"
    for name in ARCHITECTURE
    if name not in free and weights.backbone[name] != wanted[name]
  ]
  if differing:
    raise errors.UserError(f"{path} is another network: {'; '.join(differing)}")
  backbone = dict(with_pos_grid(weights, wanted["pos_grid"]).params["backbone"])
  local_norm = backbone.pop("local_norm", backbone["norm"])
  return backbone | ({"local_norm": local_norm} if wanted["local_norm"] else {})
