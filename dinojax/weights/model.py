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
from dinojax.networks import heads, positions, vit
from dinojax.weights import json_objects

# Fields of VisionTransformer that make an architecture; the others are how it is run.
ARCHITECTURE = (
  *("patch_size", "pos_grid", "width", "depth", "heads", "ffn", "registers", "pool"),
)

LARGEST = 2**14  # of the numbers among them
CHOICES = {"ffn": ("mlp", "swiglu"), "pool": ("cls", "gap")}

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
  image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  net = module(backbone, dtype="float32", attention="xla")
  key = jax.random.key(0)
  return jax.eval_shape(lambda x: net.init(key, (x,), (None,)), image)["params"]


def head_shapes(*, hidden: int, bottleneck: int, prototypes: int, width: int) -> Any:
  """A head's parameters, as `shapes`; width: of the backbone."""
  net = heads.DINOHead(hidden, bottleneck, prototypes, dtype="float32")
  feature = jax.ShapeDtypeStruct((1, width), jnp.float32)
  return jax.eval_shape(net.init, jax.random.key(0), feature)["params"]


def flatten(tree: Any) -> dict[str, Any]:
  """{"blocks.attn.qkv.kernel": leaf, ...} of a nested dict."""
  keystr = functools.partial(jax.tree_util.keystr, simple=True, separator=".")
  return {keystr(path): x for path, x in jax.tree.leaves_with_path(tree)}


def architecture(fields: Any, path: str) -> dict[str, Any]:
  """The fields of ARCHITECTURE among `fields`; UserError names one that cannot be."""
  if not isinstance(fields, dict):
    raise errors.UserError(f"{path} has no backbone={{...}}")
  for name in ARCHITECTURE:
    value = fields.get(name)
    least = 0 if name == "registers" else 1
    if name in CHOICES:
      fits, wanted = value in CHOICES[name], " or ".join(CHOICES[name])
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
  return {name: fields[name] for name in ARCHITECTURE}


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
  images of that grid are stored.
  """
  if pos_grid == weights.backbone["pos_grid"]:
    return weights
  backbone = dict(weights.params["backbone"])
  pos_embed = np.asarray(backbone["pos_embed"])[0]
  patches = positions.resize(
    pos_embed[1:], pos_grid, pos_grid, antialias=weights.backbone["registers"] > 0
  )
  backbone["pos_embed"] = np.concatenate([pos_embed[:1], np.asarray(patches)])[None]
  return dataclasses.replace(
    weights,
    backbone={**weights.backbone, "pos_grid": pos_grid},
    params={**weights.params, "backbone": backbone},
  )


def with_choices(
  backbone: dict, path: str, *, heads: int | None, pool: str | None
) -> dict:
  """An architecture that a file holds in full, with the choices of the caller.

  Raises:
    UserError: `heads` is not that of the file.
  """
  if heads and heads != backbone["heads"]:
    raise errors.UserError(
      f"{path} has {backbone['heads']} attention heads and not {heads}; leave heads out"
    )
  return {**backbone, "pool": pool or backbone["pool"]}


def fit(weights: Weights, wanted: dict, path: str) -> Any:
  """The backbone's parameters for an architecture, position embeddings resized to it.

  Args:
    weights: of any file.
    wanted: the fields of ARCHITECTURE, such as `config.backbone`.
    path: of the weights, for the error.

  Raises:
    UserError: another architecture, grid and image feature aside.
  """
  free = ("pos_grid", "pool")
  differing = [
    f"{name}={weights.backbone[name]} there and config.backbone.{name}={wanted[name]}"
    for name in ARCHITECTURE
    if name not in free and weights.backbone[name] != wanted[name]
  ]
  if differing:
    raise errors.UserError(f"{path} is another network: {'; '.join(differing)}")
  return with_pos_grid(weights, wanted["pos_grid"]).params["backbone"]
