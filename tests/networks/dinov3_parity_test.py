"""The backbone beside transformers' DINOv3ViTModel, with the same random weights.

Models are saved by transformers, and their folders read by ours.
"""

import functools

import jax
import numpy as np
import pytest
import torch
import transformers

from dinojax.weights import formats, model

PATCH, DEPTH, CROPS = 8, 2, 2
# Widths of S, S+ and, with heads as wide as those of 7B, of nothing released.
KINDS = {
  "S": dict(hidden_size=384, num_attention_heads=6, intermediate_size=1536),
  "S+": dict(
    hidden_size=384,
    num_attention_heads=6,
    intermediate_size=1536,
    use_gated_mlp=True,
    hidden_act="silu",
  ),
  "128 channels a head": dict(
    hidden_size=256,
    num_attention_heads=2,
    intermediate_size=96,
    use_gated_mlp=True,
    hidden_act="silu",
    query_bias=False,
    value_bias=False,
  ),
  "all biases": dict(
    hidden_size=64, num_attention_heads=1, intermediate_size=256, key_bias=True
  ),
}


@functools.cache
def make_reference(kind):
  config = transformers.DINOv3ViTConfig(
    **KINDS[kind],
    num_hidden_layers=DEPTH,
    patch_size=PATCH,
    image_size=4 * PATCH,
    num_register_tokens=4,
  )
  network = transformers.DINOv3ViTModel(config).eval()
  generator = torch.Generator().manual_seed(0)
  for name, weights in network.named_parameters():
    spread = weights.shape[-1] ** -0.5 if weights.ndim == 2 else 0.5
    weights.data = spread * torch.randn(weights.shape, generator=generator)
    if "layer_scale" in name or ("norm" in name and "weight" in name):
      weights.data += 1  # or signs flip and little gets through
  return network


@pytest.mark.parametrize(
  "kind, height, width, masked",
  [
    ("S", 4, 4, False),
    ("S+", 3, 5, True),
    ("128 channels a head", 2, 6, False),
    ("all biases", 5, 4, True),
  ],
)
def test_every_token_equals_transformers(tmp_path, kind, height, width, masked):
  rng = np.random.default_rng(0)
  shape = (CROPS, height * PATCH, width * PATCH, 3)
  images = rng.normal(size=shape).astype(np.float32)
  mask = rng.random((CROPS, height * width)) < 0.4 if masked else None
  reference = make_reference(kind)
  with torch.no_grad():
    wanted = reference(
      torch.tensor(images.transpose(0, 3, 1, 2)),
      bool_masked_pos=None if mask is None else torch.tensor(mask),
    ).last_hidden_state.numpy()
  reference.save_pretrained(tmp_path)
  weights = formats.read(str(tmp_path))
  net = model.module(weights.backbone, dtype="float32", attention="xla")
  params = {"params": weights.params["backbone"]}
  (found,) = jax.jit(net.apply)(params, (images,), (mask,))
  scale = np.abs(wanted).max()
  np.testing.assert_allclose(found.cls, wanted[:, 0], atol=1e-5 * scale)
  np.testing.assert_allclose(found.patches, wanted[:, 5:], atol=1e-5 * scale)
