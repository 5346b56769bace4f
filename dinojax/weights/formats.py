"""Formats of weights: reading any of them, writing any of them.

dinojax:      a run's workdir, or a folder that `convert` wrote (Orbax)
released:     .pth as DINOv2's or DINOv3's hub loads it
teacher:      .pth of a DINOv2 or DINOv3 training run's teacher, with its heads
huggingface:  a Dinov2Model, Dinov2WithRegistersModel or DINOv3ViTModel folder, or its
              .safetensors

Whether DINOv2's or DINOv3's is written follows from the kind of positions.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import safetensors
from jax.sharding import Mesh

from dinojax import errors, sharding, students
from dinojax.runtime import orbax_errors, ownership
from dinojax.weights import (
  dinov3,
  files,
  huggingface,
  image_fields,
  json_objects,
  model,
  preprocessor,
  runs,
  state_dicts,
)

FORMATS = ("dinojax", "released", "teacher", "huggingface")
IMAGES = "dinojax_preprocessor_config"  # in a safetensors' metadata


def read(
  path: str,
  *,
  step: int | None = None,
  heads: int | None = None,
  pool: str | None = None,
  rope_periods: str | None = None,
  mesh: Mesh | None = None,
  parts: tuple[str, ...] = ("backbone",),
) -> model.Weights:
  """Weights of a file or folder of any format.

  Args:
    path: see above.
    step: of a run; None: its newest checkpoint.
    heads: attention heads; needed if the file does not store them and they are not
      D / 64.
    pool: image feature, "cls" or "gap"; None: that of the file, else "cls".
    rope_periods: "float32", or "bfloat16" to round the periods of rotary positions as
      released .pth files hold them; None: that of the file, else "float32".
    mesh: where to put the weights, sharded like a training state; None: NumPy arrays.
    parts: "backbone", and of the projection heads those that are there.

  Raises:
    UserError: nothing that can be read is there; it does not fit; it is not finite.
  """
  where = pathlib.Path(os.path.expanduser(path))
  choices = {"pool": pool, "rope_periods": rope_periods}
  for name, value in choices.items():
    if value not in (None, *model.CHOICES[name]):
      allowed = " or ".join(f'"{choice}"' for choice in model.CHOICES[name])
      raise errors.UserError(f'{name}="{value}" must be {allowed}')
  if not where.exists():
    step_of = path.rpartition("@")[2] if "@" in path else ""
    step_of = f", and a step of a run as --step={step_of}" if step_of else ""
    raise errors.UserError(
      f"{path} does not exist; give a run's workdir or weights{step_of}"
    )
  if where.is_dir() and (runs.is_checkpoint(where) or (where / "checkpoints").is_dir()):
    weights = runs.read(runs.find(where, step), mesh=mesh, parts=parts)
    return model.with_choices(weights, path, heads=heads, **choices)
  if step is not None:
    raise errors.UserError(f"{path} is no run, and --step={step} asks for one")
  weights = _read_arrays(where, path, heads, parts)
  weights = model.with_choices(weights, path, heads=None, **choices)
  if mesh is None:
    return weights
  placed = sharding.state_sharding(mesh, weights.params)
  params = jax.tree.map(place, weights.params, placed)
  return dataclasses.replace(weights, params=params)


def read_at(path: str, **options: Any) -> model.Weights:
  """`read` of "PATH", or of "RUN@STEP", a step of a run."""
  run, at, step = path.rpartition("@")
  if at and step.isdecimal():
    return read(run, step=int(step), **options)
  return read(path, **options)


def place(x: np.ndarray, where: jax.sharding.Sharding) -> jax.Array:
  """A global array of a NumPy array that every process has."""
  return jax.make_array_from_callback(x.shape, where, lambda index: x[index])


def guess(path: str) -> str:
  """The format of a file or folder to write, by the ending of its name.

  Raises:
    UserError: it has the ending of a file, and of no format.
  """
  ending = pathlib.Path(path).suffix
  by_ending = {".safetensors": "huggingface", ".pth": "released", ".pt": "released"}
  if ending[1:].isalpha() and ending not in by_ending:
    raise errors.UserError(
      f"{path}: no format has the ending {ending}; there are {', '.join(by_ending)},"
      " .stablehlo and .onnx, and a name without an ending becomes a folder"
    )
  return by_ending.get(ending, "dinojax")


def write(weights: model.Weights, path: str, format_name: str) -> list[str]:
  """Writes weights; returns what the format cannot store, a line each.

  Raises:
    UserError: `path` exists, cannot be written, or does not suit the format.
  """
  where = free_path(path)
  if format_name in ("released", "teacher") and where.suffix not in files.TORCH_ENDINGS:
    raise errors.UserError(f"{path} must end in .pth for the format {format_name}")
  with moved_when_complete(where) as new:
    try:
      return _write(weights, new, format_name)
    except (*orbax_errors.IO_ERRORS, safetensors.SafetensorError) as error:
      reason = orbax_errors.explain(error)
      raise errors.UserError(
        f"{path} cannot be written ({reason}); make room there, or permit writing"
      ) from error


@contextlib.contextmanager
def moved_when_complete(where: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a path to write a file or folder to, in a folder beside `where`.

  At the end whatever is in that folder moves to where `where` is to be; after an error
  or a signal nothing of it stays.

  Raises:
    UserError: it cannot be written, or another process writes it.
  """
  folder = where.with_name(f".{where.name}.new")
  with ownership.owned(where.parent, where.name, label=str(where)):
    yield from _moved(where, folder)


def _moved(where, folder):
  try:
    shutil.rmtree(folder, ignore_errors=True)  # left by a process that was killed
    folder.mkdir()
    yield folder / where.name
    for path in sorted(folder.iterdir(), reverse=True):  # the one with the name at last
      os.replace(path, where.with_name(path.name))
  except OSError as error:
    raise errors.UserError(f"{where} cannot be written: {error.strerror}") from error
  finally:
    _remove(folder)


def _remove(folder):
  """Removes a folder into which threads of a write that failed may still write."""
  deadline = time.monotonic() + 10
  shutil.rmtree(folder, ignore_errors=True)
  while folder.exists() and time.monotonic() < deadline:
    time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


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


def _read_arrays(where, path, heads, parts) -> model.Weights:
  """Weights of a file of named arrays, or of a Hugging Face folder."""
  others, metadata, config, images = [], {}, {}, None
  if where.is_dir():
    if not any((where / name).exists() for name in huggingface.FILES):
      raise errors.UserError(
        f"{path} holds neither checkpoints/ nor {huggingface.SAFETENSORS}; give a"
        " run's workdir, a converted folder, or a Hugging Face model"
        f"{students.instead_of(path)}"
      )
    arrays, others, metadata, config, images = huggingface.read(where)
    source = f"{path}/{preprocessor.NAME}"
  elif where.suffix in files.TORCH_ENDINGS:
    arrays, others = files.read_torch(where)
  elif where.suffix == ".safetensors":
    arrays, metadata = files.read_safetensors(where)
    source = f"{path}: {IMAGES} in its metadata"
    if IMAGES in metadata:
      images = json_objects.parse(metadata[IMAGES], source)
  elif where.suffix in (".onnx", ".stablehlo"):
    raise errors.UserError(
      f"{path} is a program, to be run as it is; give the weights that it was made of"
    )
  else:
    raise errors.UserError(
      f"{path} ends in none of .safetensors, {', '.join(files.TORCH_ENDINGS)}; rename"
      " it after what it is"
    )
  own_heads = huggingface.stored_heads(metadata, config, path)
  weights = state_dicts.read(
    arrays, path, others=others, heads=own_heads or heads, parts=parts
  )
  if own_heads:
    model.with_choices(weights, path, heads=heads)
  stored = huggingface.stored_fields(metadata, config, weights.backbone)
  count = len(weights.backbone["mean"])
  if images is None:
    stored |= dinov3.statistics(where.name, channels=count)
  else:
    stored |= preprocessor.statistics_of(images, path=source, channels=count)
  architecture = model.architecture({**weights.backbone, **stored}, path)
  weights = dataclasses.replace(weights, backbone=architecture)
  if config:
    huggingface.check_config(config, weights.backbone, path)
  if images is None:
    return weights
  patch_size = weights.backbone["patch_size"]
  sizes = preprocessor.sizes_of(images, patch_size=patch_size, path=source)
  return dataclasses.replace(weights, sizes=sizes)


def _write(weights, where, format_name) -> list[str]:
  """Writes a file or folder; returns what is lost."""
  backbone = weights.backbone
  heads = sorted(weights.params.keys() - {"backbone"})
  if format_name == "dinojax":
    runs.write(where, weights)
    return []
  rotary, usual = backbone["positions"] == "rope", model.DEFAULTS
  lost = []
  for name in ("ffn_width", "norm_eps", "qkv_bias", "local_norm"):
    if not rotary and backbone[name] != usual[name]:
      raise errors.UserError(
        f"{format_name} cannot hold {name}={backbone[name]} with learned positions,"
        f" since DINOv2's networks have {usual[name]}; write --to=dinojax"
      )
  if heads and format_name != "teacher":
    lost.append(f"{' and '.join(heads)}: this format has no projection heads")
  patch_size, pos_grid = backbone["patch_size"], backbone["pos_grid"]
  crop = model.usual_crop(patch_size=patch_size, pos_grid=pos_grid)
  own_sizes = {"resize": model.usual_resize(crop), "crop": crop}
  images = preprocessor.config_of(weights.sizes or own_sizes, backbone)
  arrays = state_dicts.write(weights, format_name)
  if format_name == "huggingface":
    if backbone["local_norm"]:
      lost.append("local_norm: it serves training alone")
    # Fields of our own, for what the format cannot store; others ignore them.
    stored = ("heads", "pool") + (huggingface.ROTARY if rotary else ())
    metadata = {f"dinojax_{name}": str(backbone[name]) for name in stored}
    if weights.sizes or any(backbone[x] != usual[x] for x in image_fields.FIELDS):
      metadata[IMAGES] = json.dumps(images)
    if where.suffix == ".safetensors":
      files.write_safetensors(where, arrays, metadata)
    else:
      huggingface.write(where, arrays, metadata, backbone=backbone, images=images)
    return lost
  if weights.sizes and weights.sizes != own_sizes:
    options = " ".join(f"--{name}={value}" for name, value in weights.sizes.items())
    lost.append(f"the sizes at which images are evaluated: give {options}")
  files.write_torch(where, {"teacher": arrays} if format_name == "teacher" else arrays)
  told = rotary or backbone["heads"] * state_dicts.HEAD_WIDTH == backbone["width"]
  if not told:
    lost.append(f"heads={backbone['heads']}: give --heads when it is read again")
  by_name = dinov3.statistics(where.name, channels=len(backbone["mean"]))
  if statistics := image_fields.differing(backbone, by_name):
    others = "images get others when it is read again, and features would differ"
    lost.append(f"{statistics}: {others}; keep --to=dinojax or huggingface")
  for name in ("pool", "rope_periods"):
    if backbone[name] != model.CHOICES[name][0]:
      lost.append(f"{name}={backbone[name]}: give --{name} when it is read again")
  if rotary and backbone["norm_eps"] != dinov3.NORM_EPS:
    eps = f"norm_eps={backbone['norm_eps']}: DINOv3's networks have {dinov3.NORM_EPS}"
    lost.append(f"{eps}, and features would differ; keep --to=dinojax or huggingface")
  return lost
