"""Files of named arrays: .pth, safetensors, and Hugging Face's model folders.

Nothing in a file is run: safetensors holds arrays alone, and a .pth is read with
PyTorch's `weights_only=True`. Every file is complete before it gets its name.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from dinojax import errors
from dinojax.weights import preprocessor

HUGGINGFACE_FILES = (
  *("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"),
)
TORCH_ENDINGS = (".pth", ".pt", ".bin")
GIT_LFS = b"version https://git-lfs.github.com/spec/"
WEB_PAGES = (b"<!doctype html", b"<html", b"<?xml")


def read_safetensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict]:
  """Arrays and metadata of a safetensors file, without PyTorch."""
  _check_is_file_of_weights(path)
  try:
    with safetensors.safe_open(path, "np") as file:
      arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
      return arrays, file.metadata() or {}
  except safetensors.SafetensorError as error:
    raise errors.UserError(f"{path} is no safetensors file ({error})") from error


def read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Arrays of a .pth; of a training checkpoint those of its teacher."""
  _check_is_file_of_weights(path)
  torch = import_torch(path)
  try:
    loaded = torch.load(path, map_location="cpu", weights_only=True)
  except Exception as error:  # PyTorch's reader raises anything on what is no pickle
    raise errors.UserError(
      f"{path} is not loaded: it is damaged, or holds more than arrays, which might run"
      " code"
    ) from error
  for key in ("teacher", "model", "state_dict"):
    if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
      loaded = loaded[key]
  if not isinstance(loaded, Mapping) or not all(map(torch.is_tensor, loaded.values())):
    raise errors.UserError(f"{path} is no mapping from names to arrays")
  return {
    name: (x.float() if x.is_floating_point() else x).numpy()
    for name, x in loaded.items()
  }


def read_huggingface(folder: pathlib.Path) -> tuple[dict, dict, dict, dict | None]:
  """Arrays, their metadata, config.json, and preprocessor_config.json if there is one.

  The metadata are those of a single safetensors file; {} of others.
  """
  config, images = _read_json(folder / "config.json"), folder / preprocessor.NAME
  images = _read_json(images) if images.exists() else None
  index, binary = folder / HUGGINGFACE_FILES[1], folder / HUGGINGFACE_FILES[2]
  if (folder / HUGGINGFACE_FILES[0]).exists():
    arrays, metadata = read_safetensors(folder / HUGGINGFACE_FILES[0])
    return arrays, metadata, config, images
  if index.exists():
    files = sorted(set(_read_json(index)["weight_map"].values()))
    parts = [read_safetensors(folder / name)[0] for name in files]
    return {name: x for part in parts for name, x in part.items()}, {}, config, images
  return read_torch(binary), {}, config, images


def write_safetensors(path: pathlib.Path, arrays: Mapping, metadata: dict[str, str]):
  """Writes arrays in the order of their names."""
  arrays = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
  metadata = {"format": "pt", **metadata}  # "pt" is what transformers asks for
  new = path.with_name(f".{path.name}.new")
  new.touch()
  mode = new.stat().st_mode  # safetensors leaves its files to their owner alone
  safetensors.numpy.save_file(arrays, new, metadata)
  new.chmod(mode)
  os.replace(new, path)


def write_torch(path: pathlib.Path, tree: Mapping[str, Any]):
  """Writes a .pth of arrays, or of mappings of arrays."""
  torch = import_torch(path)

  def convert(x):
    if isinstance(x, Mapping):
      return {name: convert(y) for name, y in x.items()}
    return torch.from_numpy(np.array(x, order="C"))

  new = path.with_name(f".{path.name}.new")
  torch.save(convert(tree), new)
  os.replace(new, path)


def write_huggingface(
  folder: pathlib.Path, arrays: Mapping, metadata: dict, *, backbone: dict, images: dict
):
  """Writes a folder that `Dinov2Model.from_pretrained` and its like open."""
  new = folder.with_name(f".{folder.name}.new")
  new.mkdir(parents=True, exist_ok=True)
  write_safetensors(new / HUGGINGFACE_FILES[0], arrays, metadata)
  (new / "config.json").write_text(json.dumps(_huggingface_config(backbone), indent=2))
  (new / preprocessor.NAME).write_text(json.dumps(images, indent=2))
  os.replace(new, folder)


def check_huggingface_config(config: dict, backbone: dict, path: str):
  """Raises UserError where a config.json asks for another network than ours."""
  wanted = _huggingface_config({**backbone, "heads": config.get("num_attention_heads")})
  # What only speaks of training, or of images, is free.
  free = ("architectures", "dtype", "layerscale_value", "image_size", "qkv_bias")
  for name, value in wanted.items():
    if name not in free and config.get(name, value) != value:
      raise errors.UserError(
        f"{path}/config.json has {name}={config[name]!r}, and its weights are of a"
        f" network with {value!r}; dinojax has no other"
      )


def import_torch(path: pathlib.Path):
  """PyTorch, which only .pth files need."""
  try:
    import torch
  except ModuleNotFoundError as error:
    raise errors.UserError(
      f"{path} needs PyTorch: pip install 'dinojax[torch]'; safetensors do not"
    ) from error
  return torch


def _huggingface_config(backbone: dict) -> dict:
  registers = backbone["registers"]
  more = {"num_register_tokens": registers} if registers else {}
  name = "Dinov2WithRegisters" if registers else "Dinov2"
  return {
    "architectures": [f"{name}Model"],
    "model_type": "dinov2_with_registers" if registers else "dinov2",
    "hidden_size": backbone["width"],
    "num_hidden_layers": backbone["depth"],
    "num_attention_heads": backbone["heads"],
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "use_swiglu_ffn": backbone["ffn"] == "swiglu",
    "layer_norm_eps": 1e-6,
    "layerscale_value": 1.0,
    "qkv_bias": True,
    "num_channels": 3,
    "patch_size": backbone["patch_size"],
    "image_size": backbone["patch_size"] * backbone["pos_grid"],
    "dtype": "float32",
    **more,
  }


def parse_json(text: str, path: str | pathlib.Path) -> dict:
  """A JSON object; UserError that names `path` if it is none."""
  try:
    parsed = json.loads(text)
  except ValueError as error:
    raise errors.UserError(f"{path} cannot be read: {error}") from error
  if not isinstance(parsed, dict):
    raise errors.UserError(f"{path} cannot be read: it is no JSON object")
  return parsed


def _read_json(path: pathlib.Path) -> dict:
  try:
    return parse_json(path.read_text(), path)
  except (OSError, UnicodeDecodeError) as error:
    raise errors.UserError(f"{path} cannot be read: {error}") from error


def _check_is_file_of_weights(path: pathlib.Path):
  """Raises UserError for what people have in its place, by name."""
  try:
    with path.open("rb") as file:
      start = file.read(len(GIT_LFS) + 100)
  except OSError as error:
    raise errors.UserError(f"{path} cannot be read: {error.strerror}") from error
  if not start:
    raise errors.UserError(f"{path} is empty; copy or download it again")
  if start.startswith(GIT_LFS):
    raise errors.UserError(
      f"{path} is a git-lfs pointer, not the weights; run `git lfs pull` in its folder"
    )
  if start.lstrip().lower().startswith(WEB_PAGES):
    raise errors.UserError(
      f"{path} is a web page, not weights: its download failed; download it again"
    )
