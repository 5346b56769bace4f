"""A backbone's weights with the architecture they belong to, in our own layout.

What is read from a file goes through `check`: every parameter is there, of its shape,
and nothing is left over.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinojax import errors
from dinojax.networks import heads, positions, vit

# Fields of VisionTransformer that make an architecture; the others say how it is run.
ARCHITECTURE = (
  *("patch_size", "pos_grid", "width", "depth", "heads", "ffn", "registers", "pool"),
)

SHOWN = 10  # names in an error
LARGEST_CROP = 224  # released weights are of 518 pixels, and rated at 224


@dataclasses.dataclass(frozen=True)
class Weights:
  """Parameters and the architecture they were read with.

  backbone: the fields of ARCHITECTURE. params: {"backbone": tree} and perhaps
  "dino_head" and "ibot_head"; leaves are NumPy or jax arrays, blocks stacked. sizes:
  {"resize", "crop"}, pixels at which images are rated; {} where nothing says.
  """

  backbone: dict[str, Any]
  params: dict[str, Any]
  sizes: dict[str, int] = dataclasses.field(default_factory=dict)


def usual_crop(*, patch_size: int, pos_grid: int) -> int:
  """Pixels of a side of images to rate, where nothing says: the weights' own."""
  largest = max(LARGEST_CROP // patch_size, 1) * patch_size
  return min(patch_size * pos_grid, largest)


def usual_resize(crop: int) -> int:
  """Pixels of the shorter side before the crop, where nothing says: 256 for 224."""
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
  leaves = jax.tree.leaves_with_path(tree)
  return {".".join(part.key for part in path): x for path, x in leaves}


def check(weights: Weights, path: str) -> Weights:
  """Returns weights whose backbone fits its architecture; UserError lists what not."""
  wanted = {"backbone": shapes(weights.backbone)}
  wanted |= {k: v for k, v in weights.params.items() if k != "backbone"}
  wanted, found = (
    {name: x.shape for name, x in flatten(tree).items()}
    for tree in (wanted, weights.params)
  )
  compare(path, wanted=wanted, found=found)
  return weights


def compare(path: str, *, wanted: dict[str, tuple], found: dict[str, tuple]) -> None:
  """Raises UserError that lists all shapes, by name, that are not what they should."""
  wrong = [f"{name} is missing" for name in wanted.keys() - found.keys()]
  wrong += [f"{name} is left over" for name in found.keys() - wanted.keys()]
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
  """The same weights with their position embedding resized, once and for all.

  By the model's own rule (positions.py): what it would compute for images of that grid
  becomes its embedding.
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
  """An architecture that a file tells in full, with a person's choices.

  Raises:
    UserError: `heads` is not what the file says.
  """
  if heads and heads != backbone["heads"]:
    raise errors.UserError(
      f"{path} has {backbone['heads']} attention heads and not {heads}; leave heads out"
    )
  return {**backbone, "pool": pool or backbone["pool"]}


def fit(weights: Weights, wanted: dict, path: str) -> Any:
  """The backbone's parameters for an architecture, on its position grid.

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
