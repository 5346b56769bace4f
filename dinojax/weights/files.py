"""Files of named arrays, .pth and safetensors: reading, and writing.

Nothing in a file is run: safetensors holds arrays alone, and a .pth is read with
PyTorch's `weights_only=True`. Sizes are compared with the machine's memory before
anything of that size is read.
"""

import argparse
import functools
import os
import pathlib
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from dinojax import errors

TORCH_ENDINGS = (".pth", ".pt", ".bin")
GIT_LFS = b"version https://git-lfs.github.com/spec/"
WEB_PAGES = (b"<!doctype html", b"<html", b"<?xml")
DEEPEST = 16  # levels of nested mappings in a .pth


class Stored(NamedTuple):
  """An array in a file, which `read` returns as NumPy.

  dtype: its name in the file, for messages. floating: whether it holds floating-point
  numbers.
  """

  shape: tuple[int, ...]
  dtype: str
  floating: bool
  read: Callable[[], np.ndarray]


def read_safetensors(path: pathlib.Path) -> tuple[dict[str, Stored], dict[str, str]]:
  """Arrays and metadata of a safetensors file, without PyTorch."""
  _check_is_file_of_weights(path)
  try:
    file = safetensors.safe_open(path, "np")  # stays open while an array is not read
    arrays = {}
    for name in file.keys():  # noqa: SIM118
      part = file.get_slice(name)
      dtype = part.get_dtype()
      arrays[name] = Stored(
        tuple(part.get_shape()),
        dtype,
        dtype.startswith(("F", "BF")),
        functools.partial(_read_slice, file, name, path),
      )
    return arrays, file.metadata() or {}
  except safetensors.SafetensorError as error:
    raise errors.UserError(f"{path} is no safetensors file ({error})") from error


def _read_slice(file, name: str, path: pathlib.Path) -> np.ndarray:
  try:
    return file.get_tensor(name)
  except (safetensors.SafetensorError, AttributeError, TypeError) as error:
    # NumPy has no 8-bit floating-point numbers.
    raise errors.UserError(f"{path}: {name} cannot be read ({error})") from error


def read_torch(path: pathlib.Path) -> tuple[dict[str, Stored], list[str]]:
  """Arrays of a .pth, and the names of what else it holds.

  Mappings may be nested: {"model": {"norm.bias": array}, "epoch": 3} gives the array as
  "model.norm.bias", and ["epoch"].
  """
  _check_is_file_of_weights(path)
  _check_zip(path)
  check_memory(path, path.stat().st_size)
  torch = import_torch(path)
  try:
    with (
      torch.serialization.safe_globals([argparse.Namespace]),  # options of a run
      warnings.catch_warnings(action="ignore"),  # of pickles in other versions
    ):
      loaded = torch.load(path, map_location="cpu", weights_only=True)
  except Exception as error:  # PyTorch's reader raises anything on what is no pickle
    if refused := re.search(r"GLOBAL (\S+) was not an allowed", str(error)):
      raise errors.UserError(
        f"{path} is not loaded: it holds {refused[1]}, which is no array and might run"
        " code; if you trust the file, save its arrays alone:"
        f" torch.save(torch.load({path.name!r}, weights_only=False)['model'], PATH)"
      ) from error
    raise errors.UserError(
      f"{path} is not loaded: it is damaged, or holds more than arrays, which might run"
      " code"
    ) from error
  arrays, others = {}, []
  _flatten(loaded, (), path, arrays, others, set())
  if not arrays:
    raise errors.UserError(f"{path} is no mapping from names to arrays")
  return arrays, others


def _flatten(value, keys: tuple, path, arrays: dict, others: list, seen: set) -> None:
  """Sorts the values of nested mappings into arrays and the names of others."""
  name = ".".join(keys)
  if import_torch(path).is_tensor(value):
    arrays[name] = Stored(
      tuple(value.shape),
      str(value.dtype).removeprefix("torch."),
      value.is_floating_point(),
      functools.partial(_to_numpy, value, f"{path}: {name}"),
    )
  elif (
    isinstance(value, Mapping)
    and all(isinstance(key, str) for key in value)
    and len(keys) < DEEPEST
    and id(value) not in seen  # a pickle may hold a mapping within itself
  ):
    seen.add(id(value))
    for key, inner in value.items():
      _flatten(inner, (*keys, key), path, arrays, others, seen)
  else:
    others.append(name)


def _to_numpy(tensor, name: str) -> np.ndarray:
  try:
    return tensor.detach().float().numpy()
  except (TypeError, RuntimeError) as error:  # sparse, or without values ("meta")
    raise errors.UserError(
      f"{name} cannot be read: it is a {tensor.layout} array on {tensor.device}"
    ) from error


def write_safetensors(path: pathlib.Path, arrays: Mapping, metadata: dict[str, str]):
  """Writes arrays in the order of their names."""
  arrays = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
  path.touch()
  mode = path.stat().st_mode  # safetensors would let the owner alone read it
  # "pt" is what transformers asks for.
  safetensors.numpy.save_file(arrays, path, {"format": "pt", **metadata})
  path.chmod(mode)


def write_torch(path: pathlib.Path, tree: Mapping[str, Any]):
  """Writes a .pth of arrays, or of mappings of arrays."""
  torch = import_torch(path)

  def convert(x):
    if isinstance(x, Mapping):
      return {name: convert(y) for name, y in x.items()}
    return torch.from_numpy(np.array(x, order="C"))

  with path.open("wb") as file:  # of Python, which says why it cannot be written
    torch.save(convert(tree), file)


def import_torch(path: pathlib.Path):
  """PyTorch, which only .pth files need."""
  try:
    import torch
  except ModuleNotFoundError as error:
    raise errors.UserError(
      f"{path} needs PyTorch: pip install 'dinojax[torch]'; safetensors do not"
    ) from error
  return torch


def check_memory(path: str | pathlib.Path, size: int) -> None:
  """Raises UserError if something to be read is larger than the machine's memory."""
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  if size > memory:
    raise errors.UserError(
      f"{path} takes {size / 1e9:,.1f} GB, and this machine has {memory / 1e9:,.1f} GB"
      " of memory; use a larger machine, or a file of the backbone alone"
    )


def _check_zip(path: pathlib.Path) -> None:
  """Raises UserError for a .pth that would unpack to more than it is."""
  if not zipfile.is_zipfile(path):
    return  # as PyTorch wrote before 1.6
  try:
    with zipfile.ZipFile(path) as file:
      size = sum(member.file_size for member in file.infolist())
  except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
    raise errors.UserError(f"{path} is not loaded: it is damaged ({error})") from error
  if size > path.stat().st_size:
    raise errors.UserError(
      f"{path} is not loaded: it would unpack to {size:,} bytes, more than it has;"
      " torch.save compresses nothing"
    )


def _check_is_file_of_weights(path: pathlib.Path):
  """Raises UserError for other things that lie in the place of weights, by name."""
  try:
    if not path.is_file():  # opening a FIFO would wait for ever
      path.stat()
      raise errors.UserError(f"{path} is no file; give a file of weights")
    with path.open("rb") as file:
      start = file.read(len(GIT_LFS) + 100)
  except OSError as error:
    raise errors.of_disk(error)(f"{path} cannot be read: {error.strerror}") from error
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
