"""DINOv3's files: both kinds of names, what they lack or hold besides, counts."""

import itertools
import json
import math
import re

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from dinojax import errors
from dinojax.networks import rope
from dinojax.weights import formats, model
from tests.weights import samples

PLAIN = samples.PLAIN | dict(
  positions="rope",
  registers=4,
  norm_eps=1e-5,
  qkv_bias="no_key",
  pos_grid=14,
  pool="cls",
)
GATED = PLAIN | dict(ffn="swiglu", ffn_width=96, local_norm=True)
UNBIASED = GATED | dict(width=128, heads=1, qkv_bias="none", local_norm=False)
# Parameters of the released .pth files, without buffers, and of transformers' models.
COUNTS = {
  "S": (dict(width=384, depth=12, heads=6), 21_601_152, 21_596_544),
  "S+": (
    dict(width=384, depth=12, heads=6, ffn="swiglu", ffn_width=1536),
    *(28_697_472, 28_692_864),
  ),
  "B": (dict(width=768, depth=12, heads=12), 85_669_632, 85_660_416),
  "L": (dict(width=1024, depth=24, heads=16), 303_154_176, 303_129_600),
  "L, SAT-493M": (
    dict(width=1024, depth=24, heads=16, local_norm=True),
    *(303_156_224, 303_129_600),
  ),
  "H+": (
    dict(width=1280, depth=32, heads=20, ffn="swiglu", ffn_width=5120),
    *(840_633_600, 840_592_640),
  ),
  "7B": (
    dict(width=4096, depth=40, heads=32, ffn="swiglu", ffn_width=8192)
    | dict(qkv_bias="none", local_norm=True),
    *(6_716_043_264, 6_716_035_072),
  ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_every_released_size_has_its_number_of_parameters(name):
  fields, released, huggingface = COUNTS[name]
  architecture = PLAIN | dict(patch_size=16) | fields
  leaves = jax.tree.leaves(model.shapes(architecture))
  found = sum(math.prod(x.shape) for x in leaves)
  assert found == released
  keys = architecture["qkv_bias"] == "no_key"
  lacks = fields["depth"] * fields["width"] * keys
  lacks += 2 * fields["width"] * architecture["local_norm"]
  assert found - lacks == huggingface


@pytest.mark.parametrize(
  ("format_name", "architecture"),
  [
    ("dinojax", GATED),  # whatever there is
    *itertools.product(("released", "teacher"), (PLAIN, GATED, UNBIASED)),
  ],
)
def test_weights_come_back_bit_by_bit(tmp_path, architecture, format_name):
  weights = samples.random_weights(architecture, heads=("dino_head", "ibot_head"))
  path = str(tmp_path / samples.NAMES[format_name])
  parts = ("backbone", "dino_head", "ibot_head")
  formats.write(weights, path, format_name)
  found = formats.read(path, parts=parts)
  if format_name == "released":
    weights = samples.random_weights(architecture)
  samples.assert_same(found, weights)
  again = str(tmp_path / f"again-{samples.NAMES[format_name]}")
  formats.write(found, again, format_name)
  if format_name != "dinojax":
    one, other = (torch.load(p, weights_only=True) for p in (path, again))
    one, other = (x.get("teacher", x) for x in (one, other))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_heads_without_weight_norm_come_back_from_a_training_checkpoint(tmp_path):
  head = dict(hidden=16, bottleneck=8, prototypes=20, weight_norm=False)
  tree = model.head_shapes(width=64, **head)
  rng = np.random.default_rng(1)
  tree = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), tree)
  weights = samples.random_weights(PLAIN)
  weights.params["dino_head"] = tree
  path = str(tmp_path / "teacher.pth")
  formats.write(weights, path, "teacher")
  stored = torch.load(path, weights_only=True)["teacher"]
  assert stored["dino_head.last_layer.weight"].shape == (20, 8)
  assert "backbone.blocks.2.attn.qkv.bias_mask" in stored
  found = formats.read(path, parts=("backbone", "dino_head"))
  samples.assert_same(found, weights)


def test_huggingface_lacks_the_bias_of_keys_and_the_norm_of_local_crops(tmp_path):
  weights = samples.random_weights(GATED)
  lost = formats.write(weights, str(tmp_path / "model"), "huggingface")
  assert any("local_norm" in line for line in lost)
  found = formats.read(str(tmp_path / "model"))
  backbone = weights.params["backbone"]
  backbone["blocks"]["attn"]["qkv"]["bias"][:, 64:128] = 0
  del backbone["local_norm"]
  samples.assert_same(
    found, model.Weights(GATED | dict(local_norm=False), {"backbone": backbone})
  )


def save_reference(folder, **fields):
  config = transformers.DINOv3ViTConfig(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=1,
    intermediate_size=256,
    image_size=32,
    patch_size=8,
    num_register_tokens=4,
    **fields,
  )
  network = transformers.DINOv3ViTModel(config).eval()
  generator = torch.Generator().manual_seed(0)
  for weights in network.parameters():
    weights.data = 0.3 * torch.randn(weights.shape, generator=generator)
  network.save_pretrained(folder)
  return network


@pytest.mark.parametrize("architecture", [PLAIN, GATED, UNBIASED])
def test_transformers_opens_what_is_written(tmp_path, architecture):
  path = tmp_path / "model"
  formats.write(samples.random_weights(architecture), str(path), "huggingface")
  network, info = transformers.AutoModel.from_pretrained(path, output_loading_info=True)
  assert type(network).__name__ == "DINOv3ViTModel"
  assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys"))
  assert network.config.layer_norm_eps == 1e-5


@pytest.mark.parametrize(
  "renamed", ["model.layer.", "dinov3_vit.layer.", "dinov3_vit.model.layer."]
)
def test_names_of_transformers_5_and_of_wrappers_are_read(tmp_path, renamed, capfd):
  save_reference(tmp_path / "plain")
  source = tmp_path / "plain" / "model.safetensors"
  arrays = safetensors.torch.load_file(source)
  wrapper = re.match(r"(dinov3_vit\.)?", renamed)[0]
  other = {
    renamed + name.removeprefix("layer.")
    if name.startswith("layer.")
    else wrapper + name: x
    for name, x in arrays.items()
  }
  safetensors.torch.save_file(other, tmp_path / "other.safetensors")
  one, two = (formats.read(str(p)) for p in (source, tmp_path / "other.safetensors"))
  samples.assert_same(one, two)


def released(folder, **changes):
  """A .pth of PLAIN, as the hub has it; `changes` by name, None to leave one out."""
  path = folder / "hub.pth"
  formats.write(samples.random_weights(PLAIN), str(path), "released")
  arrays = torch.load(path, weights_only=True)
  for name, value in changes.items():
    arrays[name] = value
  path.unlink()
  torch.save({k: v for k, v in arrays.items() if v is not None}, path)
  return str(path)


def test_a_file_without_masks_or_periods_is_the_same_network(tmp_path):
  masks = {f"blocks.{i}.attn.qkv.bias_mask": None for i in range(3)}
  bare = formats.read(
    released(tmp_path, **masks, **{"rope_embed.periods": None}), heads=1
  )
  samples.assert_same(bare, samples.random_weights(PLAIN))


def test_periods_are_exact_unless_those_of_the_file_are_asked_for(tmp_path):
  path = released(tmp_path)
  stored = torch.load(path, weights_only=True)["rope_embed.periods"].numpy()
  np.testing.assert_array_equal(stored, rope.periods(64, dtype="bfloat16"))
  assert formats.read(path).backbone["rope_periods"] == "float32"
  rounded = formats.read(path, rope_periods="bfloat16")
  assert rounded.backbone["rope_periods"] == "bfloat16"
  lost = formats.write(rounded, str(tmp_path / "again.pth"), "released")
  assert lost == ["rope_periods=bfloat16: give --rope_periods when it is read again"]
  formats.write(rounded, str(tmp_path / "model"), "huggingface")
  samples.assert_same(formats.read(str(tmp_path / "model")), _without_keys(rounded))


def _without_keys(weights):
  weights.params["backbone"]["blocks"]["attn"]["qkv"]["bias"][:, 64:128] = 0
  return weights


@pytest.mark.parametrize(
  "name, value, message",
  [
    ("rope_embed.periods", torch.full((16,), 3.0), "periods of the rotary positions"),
    ("rope_embed.periods", torch.zeros(0), "periods of the rotary positions"),
    ("rope_embed.periods", torch.zeros(()), "periods of the rotary positions"),
    (
      "rope_embed.periods",
      torch.ones(1).expand(10**12),
      "periods of the rotary positions",
    ),
    ("blocks.1.attn.qkv.bias_mask", torch.ones(()), "no other bias"),
    ("blocks.1.attn.qkv.bias_mask", torch.ones(192), "no other bias"),
    ("blocks.1.attn.qkv.bias_mask", torch.full((192,), torch.nan), "no other bias"),
    ("storage_tokens", None, "storage_tokens is missing|does not fit"),
    ("blocks.2.ls1.gamma", None, "blocks.2.ls1.gamma is missing"),
    ("blocks.2.mlp.w1.weight", torch.zeros(1, 1), "left over|missing"),
  ],
)
def test_what_is_no_dinov3_is_refused_by_name(tmp_path, name, value, message):
  if name == "storage_tokens":
    found = formats.read(released(tmp_path, storage_tokens=None))
    assert found.backbone["registers"] == 0
    return
  with pytest.raises(errors.UserError, match=message):
    formats.read(released(tmp_path, **{name: value}))


@pytest.mark.parametrize(
  "field, value",
  [("rope_theta", 10.0), ("mlp_bias", False), ("hidden_act", "relu")],
)
def test_a_config_of_another_network_is_refused(tmp_path, field, value):
  save_reference(tmp_path / "model")
  config = tmp_path / "model" / "config.json"
  assert field in json.loads(config.read_text())
  samples.change_json(config, **{field: value})
  with pytest.raises(errors.UserError, match=f"config.json has {field}="):
    formats.read(str(tmp_path / "model"))


def test_dinov2_names_do_not_hold_what_dinov3_changed(tmp_path):
  weights = samples.random_weights(samples.PLAIN | dict(pool="cls", norm_eps=1e-5))
  with pytest.raises(errors.UserError, match="cannot hold norm_eps=1e-05"):
    formats.write(weights, str(tmp_path / "x.pth"), "released")
