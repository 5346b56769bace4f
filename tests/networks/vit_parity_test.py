"""The backbone beside transformers' DINOv2 models, with the same random weights.

The models are saved by transformers, and their folders read by ours.
"""

import functools

import dino_oracle
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers

from dinojax.weights import formats, model

WIDTH, DEPTH, HEADS, PATCH, GRID, CROPS = 32, 3, 4, 14, 4, 3


@functools.cache
def make_reference(ffn, registers):
  options = dict(
    hidden_size=WIDTH,
    num_hidden_layers=DEPTH,
    num_attention_heads=HEADS,
    image_size=PATCH * GRID,
    patch_size=PATCH,
    use_swiglu_ffn=ffn == "swiglu",
  )
  if registers:
    config = transformers.Dinov2WithRegistersConfig(
      **options, num_register_tokens=registers
    )
    model = transformers.Dinov2WithRegistersModel(config)
  else:
    model = transformers.Dinov2Model(transformers.Dinov2Config(**options))
  generator = torch.Generator().manual_seed(0)
  for name, weights in model.named_parameters():
    spread = 0.2 if weights.ndim == 2 else 0.5
    weights.data = spread * torch.randn(weights.shape, generator=generator)
    if "layer_scale" in name or ("norm" in name and "weight" in name):
      weights.data += 1  # or signs flip and little gets through
  return model.eval()


def compare(folder, *, ffn, registers, masked, height=GRID, width=GRID):
  """Largest difference over CLS and all patch tokens, relative to the largest value."""
  rng = np.random.default_rng(0)
  shape = (CROPS, height * PATCH, width * PATCH, 3)
  images = rng.normal(size=shape).astype(np.float32)
  mask = rng.random((CROPS, height * width)) < 0.4 if masked else None
  reference = make_reference(ffn, registers)
  with torch.no_grad():
    wanted = reference(
      torch.tensor(images.transpose(0, 3, 1, 2)),
      bool_masked_pos=None if mask is None else torch.tensor(mask),
    ).last_hidden_state.numpy()
  reference.save_pretrained(folder)
  weights = formats.read(str(folder))
  net = model.module(weights.backbone, dtype="float32", attention="xla")
  params = weights.params["backbone"]
  (found,) = dino_oracle.apply(net, params, (images,), (mask,))
  assert found.patches.shape == (CROPS, height * width, WIDTH)
  np.testing.assert_array_equal(found.image, found.cls)
  difference = max(
    np.abs(found.cls - wanted[:, 0]).max(),
    np.abs(found.patches - wanted[:, 1 + registers :]).max(),
  )
  return difference / np.abs(wanted).max()


@pytest.mark.parametrize(
  "ffn, registers, masked",
  # With registers and an MLP on other grids, below.
  [("mlp", 0, True), ("swiglu", 0, False), ("swiglu", 4, True)],
)
def test_cls_and_every_patch_equal_transformers(tmp_path, ffn, registers, masked):
  assert compare(tmp_path, ffn=ffn, registers=registers, masked=masked) < 1e-5


@pytest.mark.parametrize("height, width", [(2, 2), (6, 3)])
def test_register_models_equal_transformers_on_other_grids(tmp_path, height, width):
  size = dict(height=height, width=width)
  assert compare(tmp_path, ffn="mlp", registers=4, masked=True, **size) < 1e-5


def released_positions(embeddings, height, width):
  """How DINOv2's own code resizes: by a scale factor, with a tenth of a patch more."""
  pos_embed = embeddings.position_embeddings
  square = pos_embed[:, 1:].reshape(1, GRID, GRID, WIDTH).permute(0, 3, 1, 2)
  scale = [(side // PATCH + 0.1) / GRID for side in (height, width)]
  resized = F.interpolate(square, scale_factor=scale, mode="bicubic", antialias=False)
  assert resized.shape[2:] == (height // PATCH, width // PATCH)
  return torch.cat([pos_embed[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)


@pytest.mark.parametrize("height, width", [(2, 2), (6, 3)])
def test_plain_models_resize_positions_as_the_released_code_and_not_as_transformers(
  tmp_path, monkeypatch, height, width
):
  setting = dict(ffn="mlp", registers=0, masked=True, height=height, width=width)
  # transformers leaves the tenth out; the weights were trained and evaluated with it.
  assert compare(tmp_path / "transformers", **setting) > 1e-3
  monkeypatch.setattr(
    make_reference("mlp", 0).embeddings,
    "interpolate_pos_encoding",
    lambda tokens, height, width: released_positions(
      make_reference("mlp", 0).embeddings, height, width
    ),
  )
  assert compare(tmp_path / "released", **setting) < 1e-5
