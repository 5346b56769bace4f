"""Weights of random numbers, ours and transformers', for tests of their files."""

import functools
import json
import re

import jax
import numpy as np
import safetensors.torch
import torch
import transformers

from dinojax.weights import model

torch.set_num_threads(1)  # More wait for each other, and each busily.

PLAIN = model.DEFAULTS | dict(
  patch_size=2, pos_grid=3, width=64, depth=3, heads=1, ffn="mlp", registers=0
)
GIANT = PLAIN | dict(ffn="swiglu", registers=4)
NAMES = {
  "dinojax": "folder",
  "released": "hub.pth",
  "teacher": "training.pth",
  "huggingface": "model.safetensors",
}


def random_weights(architecture, *, heads=()):
  rng = np.random.default_rng(0)
  tree = {"backbone": model.shapes(architecture)}
  for name, bottleneck in zip(heads, (8, 6), strict=False):
    tree[name] = model.head_shapes(
      hidden=16, bottleneck=bottleneck, prototypes=20, width=architecture["width"]
    )
  fill = lambda x: rng.normal(size=x.shape).astype(np.float32)  # noqa: E731
  return model.Weights(architecture, jax.tree.map(fill, tree))


def outputs(weights, images):
  """Of the network, for normalised images."""
  net = model.module(weights.backbone, dtype="float32", attention="xla")
  params = {"params": weights.params["backbone"]}
  return jax.device_get(jax.jit(net.apply)(params, (images,), (None,))[0])


def assert_same(found, wanted):
  assert found.backbone == wanted.backbone
  jax.tree.map(np.testing.assert_array_equal, found.params, wanted.params)


@functools.cache
def make_reference():
  config = transformers.Dinov2WithRegistersConfig(
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=1,
    image_size=6,
    patch_size=2,
    use_swiglu_ffn=True,
    num_register_tokens=4,
  )
  network = transformers.Dinov2WithRegistersModel(config).eval()
  generator = torch.Generator().manual_seed(0)
  for weights in network.parameters():
    weights.data = 0.3 * torch.randn(weights.shape, generator=generator)
  return network


def released_arrays(folder):
  """A hub checkpoint, from what transformers saves by the published table of names."""
  make_reference().save_pretrained(folder / "reference")
  theirs = safetensors.torch.load_file(folder / "reference" / "model.safetensors")
  arrays = {}
  for i in range(3):
    at = f"encoder.layer.{i}.attention.attention"
    for kind in ("weight", "bias"):
      rows = [theirs.pop(f"{at}.{x}.{kind}") for x in ("query", "key", "value")]
      arrays[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(rows)
  table = {
    r"^embeddings\.position_embeddings$": "pos_embed",
    r"^embeddings\.patch_embeddings\.projection": "patch_embed.proj",
    r"^embeddings\.": "",
    r"^encoder\.layer\.": "blocks.",
    r"attention\.output\.dense": "attn.proj",
    r"layer_scale(\d)\.lambda1": r"ls\1.gamma",
    r"weights_in": "w12",
    r"weights_out": "w3",
    r"^layernorm": "norm",
  }
  for name, weights in theirs.items():
    for pattern, replacement in table.items():
      name = re.sub(pattern, replacement, name)
    arrays[name] = weights
  return arrays


def change_json(path, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
