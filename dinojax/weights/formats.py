"""Any file of weights in, any out: which format it is, and who reads or writes it.

dinojax:      a run's workdir, or a folder that `convert` wrote (Orbax)
released:     .pth as DINOv2's hub loads it
teacher:      .pth of a DINOv2 training run's teacher, with its heads
huggingface:  a Dinov2Model or Dinov2WithRegistersModel folder, or its .safetensors
"""

import dataclasses
import json
import os
import pathlib

import jax
import numpy as np
from jax.sharding import Mesh

from dinojax import errors, sharding
from dinojax.weights import files, model, preprocessor, runs, state_dicts

FORMATS = ("dinojax", "released", "teacher", "huggingface")
IMAGES = "dinojax_preprocessor_config"  # in a safetensors' metadata


def read(
  path: str,
  *,
  step: int | None = None,
  heads: int | None = None,
  pool: str | None = None,
  mesh: Mesh | None = None,
  parts: tuple[str, ...] = ("backbone",),
) -> model.Weights:
  """Weights of a file or folder of any format.

  Args:
    path: see above.
    step: of a run; None: its newest checkpoint.
    heads: attention heads; needed where the file does not say and they are not D / 64.
    pool: image feature, "cls" or "gap"; None: as the file says, else "cls".
    mesh: put there, sharded like a training state; None: NumPy arrays.
    parts: "backbone", and of the heads those that are there.

  Raises:
    UserError: nothing that can be read is there, or it does not fit.
  """
  where = pathlib.Path(os.path.expanduser(path))
  if pool not in (None, "cls", "gap"):
    raise errors.UserError(f'pool="{pool}" must be "cls" or "gap"')
  if not where.exists():
    raise errors.UserError(f"{path} does not exist; give a run's workdir or weights")
  if where.is_dir() and (runs.is_checkpoint(where) or (where / "checkpoints").is_dir()):
    weights = runs.read(runs.find(where, step), mesh=mesh, parts=parts)
    chosen = model.with_choices(weights.backbone, path, heads=heads, pool=pool)
    return dataclasses.replace(weights, backbone=chosen)
  if step is not None:
    raise errors.UserError(f"{path} is no run, and --step={step} asks for one")
  weights = _read_arrays(where, path, heads, pool)
  kept = {name: tree for name, tree in weights.params.items() if name in parts}
  if mesh is not None:
    kept = jax.tree.map(place, kept, sharding.state_sharding(mesh, kept))
  return dataclasses.replace(weights, params=kept)


def place(x: np.ndarray, where: jax.sharding.Sharding) -> jax.Array:
  """A global array of what every process has read."""
  return jax.make_array_from_callback(x.shape, where, lambda index: x[index])


def guess(path: str) -> str:
  """The format that a name to write asks for by its ending."""
  ending = pathlib.Path(path).suffix
  by_ending = {".safetensors": "huggingface", ".pth": "released", ".pt": "released"}
  return by_ending.get(ending, "dinojax")


def write(weights: model.Weights, path: str, format_name: str) -> list[str]:
  """Writes weights; returns what the format could not keep, a line each.

  Raises:
    UserError: `path` exists, cannot be written, or does not suit the format.
  """
  where = free_path(path)
  try:
    return _write(weights, where, format_name)
  except OSError as error:
    raise errors.UserError(f"{path} cannot be written: {error.strerror}") from error


def free_path(path: str) -> pathlib.Path:
  """Where to write; UserError if something is there, or nothing can be made there."""
  where = pathlib.Path(os.path.expanduser(path))
  if where.exists():
    raise errors.UserError(f"{path} exists; remove it, or choose another name")
  try:
    where.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise errors.UserError(f"{path} cannot be written: {error.strerror}") from error
  return where


def _read_arrays(where, path, heads, pool) -> model.Weights:
  if where.is_dir():
    if not any((where / name).exists() for name in files.HUGGINGFACE_FILES):
      raise errors.UserError(
        f"{path} holds neither checkpoints/ nor {files.HUGGINGFACE_FILES[0]}; give a"
        " run's workdir, a converted folder, or a Hugging Face model"
      )
    arrays, metadata, config, images = files.read_huggingface(where)
    source = f"{path}/{preprocessor.NAME}"
  elif where.suffix in files.TORCH_ENDINGS:
    arrays, metadata, config, images = files.read_torch(where), {}, {}, None
  elif where.suffix == ".safetensors":
    arrays, metadata = files.read_safetensors(where)
    config, source = {}, f"{path}: {IMAGES} in its metadata"
    images = files.parse_json(metadata[IMAGES], source) if IMAGES in metadata else None
  elif where.suffix in (".onnx", ".stablehlo"):
    raise errors.UserError(
      f"{path} is a program, to be run as it is; give the weights that it was made of"
    )
  else:
    raise errors.UserError(
      f"{path} ends in none of .safetensors, {', '.join(files.TORCH_ENDINGS)}; rename"
      " it after what it is"
    )
  said = metadata.get("dinojax_heads") or config.get("num_attention_heads")
  said = int(said) if said else None
  weights = state_dicts.read(
    arrays, path, heads=said or heads, pool=pool or metadata.get("dinojax_pool")
  )
  if said:
    model.with_choices(weights.backbone, path, heads=heads, pool=pool)
  if config:
    files.check_huggingface_config(config, weights.backbone, path)
  if images is None:
    return weights
  patch_size = weights.backbone["patch_size"]
  sizes = preprocessor.sizes_of(images, patch_size=patch_size, path=source)
  return dataclasses.replace(weights, sizes=sizes)


def _write(weights, where, format_name) -> list[str]:
  backbone = weights.backbone
  heads = sorted(weights.params.keys() - {"backbone"})
  if format_name == "dinojax":
    runs.write(where, weights)
    return []
  lost = []
  if heads and format_name != "teacher":
    lost.append(f"{' and '.join(heads)}: this format has no projection heads")
  patch_size, pos_grid = backbone["patch_size"], backbone["pos_grid"]
  crop = model.usual_crop(patch_size=patch_size, pos_grid=pos_grid)
  usual = {"resize": model.usual_resize(crop), "crop": crop}
  images = preprocessor.config_of(weights.sizes or usual)
  if format_name == "huggingface":
    arrays = state_dicts.write(weights, format_name)
    # What the format has no word for; others leave it alone.
    said = {f"dinojax_{name}": str(backbone[name]) for name in ("heads", "pool")}
    if weights.sizes:
      said[IMAGES] = json.dumps(images)
    if where.suffix == ".safetensors":
      files.write_safetensors(where, arrays, said)
    else:
      files.write_huggingface(where, arrays, said, backbone=backbone, images=images)
    return lost
  if weights.sizes and weights.sizes != usual:
    said = " ".join(f"--{name}={value}" for name, value in weights.sizes.items())
    lost.append(f"the sizes at which images are rated: give {said}")
  if where.suffix not in files.TORCH_ENDINGS:
    raise errors.UserError(f"{where} must end in .pth for the format {format_name}")
  arrays = state_dicts.write(weights, format_name)
  files.write_torch(where, {"teacher": arrays} if format_name == "teacher" else arrays)
  if backbone["heads"] * state_dicts.HEAD_WIDTH != backbone["width"]:
    lost.append(f"heads={backbone['heads']}: give --heads when it is read again")
  if backbone["pool"] != "cls":
    lost.append(f"pool={backbone['pool']}: give --pool when it is read again")
  return lost
