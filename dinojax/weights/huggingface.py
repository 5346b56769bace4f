"""Hugging Face's model folders: config.json, weights, preprocessor_config.json."""

import contextlib
import json
import pathlib
from collections.abc import Mapping

from dinojax import errors
from dinojax.networks import blocks, rope
from dinojax.weights import files, json_objects, preprocessor

SAFETENSORS, INDEX = "model.safetensors", "model.safetensors.index.json"
BINARY = "pytorch_model.bin"
FILES = (SAFETENSORS, INDEX, BINARY)
ROTARY = ("norm_eps", "rope_periods")  # in our own metadata, of networks with RoPE


def read(
  folder: pathlib.Path,
) -> tuple[dict[str, files.Stored], list[str], dict, dict, dict | None]:
  """What a folder holds.

  Returns:
    Its arrays, names of what else is in the file of weights, metadata of a single
    safetensors file ({} of others), config.json, and preprocessor_config.json or None.
  """
  config, images = json_objects.read(folder / "config.json"), folder / preprocessor.NAME
  images = json_objects.read(images) if images.exists() else None
  if (folder / SAFETENSORS).exists():
    arrays, metadata = files.read_safetensors(folder / SAFETENSORS)
    return arrays, [], metadata, config, images
  if (folder / INDEX).exists():
    return _read_shards(folder), [], {}, config, images
  arrays, others = files.read_torch(folder / BINARY)
  return arrays, others, {}, config, images


def _read_shards(folder: pathlib.Path) -> dict[str, files.Stored]:
  """The arrays that an index names, each of the file that it names for it."""
  index = folder / INDEX
  where = json_objects.read(index).get("weight_map")
  if not isinstance(where, dict) or not where:
    raise errors.UserError(
      f"{index} has weight_map={json_objects.shown(where)}; it must name the file of"
      ' each array, as {"cls_token": "model-00001-of-00002.safetensors", ...}'
    )
  for name, file in where.items():
    if not isinstance(file, str) or pathlib.PurePath(file).name != file:
      raise errors.UserError(
        f"{index} has {json_objects.shown(file)} as the file of"
        f" {json_objects.shown(name)}; it must be the name of a file in that folder"
      )
  names = sorted(set(where.values()))
  shards = {file: files.read_safetensors(folder / file)[0] for file in names}
  for name, file in where.items():
    if name not in shards[file]:
      raise errors.UserError(
        f"{folder / file} lacks {json_objects.shown(name)}, which {INDEX} has there;"
        " download both again"
      )
  return {name: shards[file][name] for name, file in where.items()}


def write(
  folder: pathlib.Path, arrays: Mapping, metadata: dict, *, backbone: dict, images: dict
):
  """Writes a folder that `AutoModel.from_pretrained` opens."""
  folder.mkdir(parents=True)
  files.write_safetensors(folder / SAFETENSORS, arrays, metadata)
  config = json.dumps(_config_of(backbone), indent=2)
  (folder / "config.json").write_text(config)
  (folder / preprocessor.NAME).write_text(json.dumps(images, indent=2))


def check_config(config: dict, backbone: dict, path: str) -> None:
  """Raises UserError where a config.json asks for another network than ours."""
  wanted = _config_of({**backbone, "heads": config.get("num_attention_heads")})
  # These say something of training or of images alone.
  free = ("architectures", "dtype", "layerscale_value", "image_size", "qkv_bias")
  for name, value in wanted.items():
    if name not in free and config.get(name, value) != value:
      raise errors.UserError(
        f"{path}/config.json has {name}={json_objects.shown(config[name])}, and its"
        f" weights are of a network with {value!r}; dinojax has no other"
      )


def stored_heads(metadata: dict, config: dict, path: str) -> int | None:
  """The number of attention heads that a file stores, if it does."""
  ours, theirs = "dinojax_heads", "num_attention_heads"
  found = {
    json_objects.whole_number(metadata.get(ours), ours, f"{path}: its metadata"),
    json_objects.whole_number(config.get(theirs), theirs, f"{path}/config.json"),
  } - {None}
  if len(found) > 1:
    raise errors.UserError(
      f"{path} has {theirs}={config[theirs]} in its config.json, and"
      f" {ours}={metadata[ours]} in the metadata of its weights; change the first"
    )
  return next(iter(found), None)


def stored_fields(metadata: dict, config: dict, backbone: dict) -> dict:
  """Fields of an architecture that arrays do not show, where a file stores them.

  Args:
    metadata: of its safetensors; {}: none.
    config: its config.json; {}: none.
    backbone: what its arrays show.
  """
  stored = {}
  if "dinojax_pool" in metadata:
    stored["pool"] = metadata["dinojax_pool"]
  if backbone["positions"] == "learned":
    return stored
  size = config.get("image_size")
  if type(size) is int and size >= backbone["patch_size"]:
    stored["pos_grid"] = size // backbone["patch_size"]
  if "dinojax_rope_periods" in metadata:
    stored["rope_periods"] = metadata["dinojax_rope_periods"]
  eps = config.get("layer_norm_eps", metadata.get("dinojax_norm_eps"))
  if eps is not None:
    with contextlib.suppress(TypeError, ValueError):  # what it is then, is an error
      eps = float(eps)
    stored["norm_eps"] = eps
  return stored


def _config_of(backbone: dict) -> dict:
  of_kind = _rotary if backbone["positions"] == "rope" else _learned
  return {
    "hidden_size": backbone["width"],
    "num_hidden_layers": backbone["depth"],
    "num_attention_heads": backbone["heads"],
    "layer_norm_eps": backbone["norm_eps"],
    "layerscale_value": 1.0,
    "num_channels": len(backbone["mean"]),
    "patch_size": backbone["patch_size"],
    "image_size": backbone["patch_size"] * backbone["pos_grid"],
    "dtype": "float32",
    **of_kind(backbone),
  }


def _learned(backbone: dict) -> dict:
  registers = backbone["registers"]
  more = {"num_register_tokens": registers} if registers else {}
  name = "Dinov2WithRegisters" if registers else "Dinov2"
  return {
    "architectures": [f"{name}Model"],
    "model_type": "dinov2_with_registers" if registers else "dinov2",
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "use_swiglu_ffn": backbone["ffn"] == "swiglu",
    "qkv_bias": True,
    **more,
  }


def _rotary(backbone: dict) -> dict:
  gated, width = backbone["ffn"] == "swiglu", backbone["width"]
  sizes = {name: backbone[name] for name in ("ffn", "ffn_width")}
  biased = blocks.BIASED[backbone["qkv_bias"]]
  names = ("query_bias", "key_bias", "value_bias")
  return {
    "architectures": ["DINOv3ViTModel"],
    "model_type": "dinov3_vit",
    "intermediate_size": blocks.hidden_width(width, **sizes),
    "use_gated_mlp": gated,
    "hidden_act": "silu" if gated else "gelu",
    **dict(zip(names, biased, strict=True)),
    "proj_bias": True,
    "mlp_bias": True,
    "num_register_tokens": backbone["registers"],
    "rope_theta": rope.BASE,
  }
