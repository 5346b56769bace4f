"""The backbone beside transformers' DINOv2 models, with the same random weights.

Weights go by the checkpoints' own names: the models are saved, and the files read.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from dinojax import vit

WIDTH, DEPTH, HEADS, PATCH, GRID, CROPS = 32, 3, 4, 14, 4, 3


def make_vit(*, ffn="mlp", registers=0, pool="cls"):
  return vit.VisionTransformer(
    patch_size=PATCH,
    pos_grid=GRID,
    width=WIDTH,
    depth=DEPTH,
    heads=HEADS,
    ffn=ffn,
    registers=registers,
    pool=pool,
    drop_path=0.0,
    layerscale_init=1e-5,
    dtype="float32",
    remat="none",
    unroll=1,
    attention="xla",
  )


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


def params_from(folder, ffn):
  """Our parameters from a saved model. torch linears are [out, in], ours [in, out]."""
  saved = safetensors.numpy.load_file(folder / "model.safetensors")
  used = set()

  def get(name):
    used.add(name)
    return saved[name]

  def linear(*names):
    return {
      "kernel": np.concatenate([get(f"{n}.weight") for n in names]).T,
      "bias": np.concatenate([get(f"{n}.bias") for n in names]),
    }

  def norm(name):
    return {"scale": get(f"{name}.weight"), "bias": get(f"{name}.bias")}

  def block(i):
    at = f"encoder.layer.{i}"
    attention = [f"{at}.attention.attention.{x}" for x in ("query", "key", "value")]
    names = {"mlp": ("fc1", "fc2"), "swiglu": ("weights_in", "weights_out")}[ffn]
    ours = {"mlp": ("fc1", "fc2"), "swiglu": ("w12", "w3")}[ffn]
    return {
      "norm1": norm(f"{at}.norm1"),
      "norm2": norm(f"{at}.norm2"),
      "attn": {
        "qkv": linear(*attention),
        "proj": linear(f"{at}.attention.output.dense"),
      },
      "ls1": {"gamma": get(f"{at}.layer_scale1.lambda1")},
      "ls2": {"gamma": get(f"{at}.layer_scale2.lambda1")},
      "mlp": {o: linear(f"{at}.mlp.{n}") for o, n in zip(ours, names, strict=True)},
    }

  patches = "embeddings.patch_embeddings.projection"
  kernel = get(f"{patches}.weight").transpose(2, 3, 1, 0)  # HWIO
  params = {
    "cls_token": get("embeddings.cls_token"),
    "mask_token": get("embeddings.mask_token"),
    "pos_embed": get("embeddings.position_embeddings"),
    "patch_embed": {
      "kernel": kernel.reshape(-1, WIDTH),
      "bias": get(f"{patches}.bias"),
    },
    "blocks": jax.tree.map(lambda *b: np.stack(b), *[block(i) for i in range(DEPTH)]),
    "norm": norm("layernorm"),
  }
  if "embeddings.register_tokens" in saved:
    params["register_tokens"] = get("embeddings.register_tokens")
  assert used == set(saved)
  return params


def compare(folder, *, ffn, registers, masked, height=GRID, width=GRID):
  """Largest difference over CLS and all patch tokens."""
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
  model = make_vit(ffn=ffn, registers=registers)
  params = params_from(folder, ffn)
  expected = jax.eval_shape(
    model.init, jax.random.key(0), (jnp.zeros((1, 56, 56, 3)),), (None,)
  )
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, expected["params"])
  (found,) = model.apply({"params": params}, (images,), (mask,))
  assert found.patches.shape == (CROPS, height * width, WIDTH)
  np.testing.assert_array_equal(found.image, found.cls)
  return max(
    np.abs(found.cls - wanted[:, 0]).max(),
    np.abs(found.patches - wanted[:, 1 + registers :]).max(),
  )


@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_cls_and_every_patch_equal_transformers(tmp_path, ffn, registers, masked):
  worst = compare(tmp_path, ffn=ffn, registers=registers, masked=masked)
  assert worst < 1e-5


@pytest.mark.parametrize("height, width", [(2, 2), (6, 3)])
def test_register_models_equal_transformers_on_other_grids(tmp_path, height, width):
  # Without registers, transformers leaves out the 0.1 of the released models' code.
  worst = compare(
    tmp_path, ffn="mlp", registers=4, masked=True, height=height, width=width
  )
  assert worst < 1e-5
