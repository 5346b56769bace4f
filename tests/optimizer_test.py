"""AdamW of the recipe beside a float64 update written out, and torch.optim.AdamW."""

import functools

import jax
import numpy as np
import optax
import pytest
import torch

from dinojax import optimizer
from dinojax.networks import heads, vit

DEPTH = 2
B1, B2, EPS, CLIP = 0.9, 0.999, 1e-4, 3.0
LAYER_DECAY, PATCH_SCALE, FREEZE = 0.9, 0.2, 2
STEPS = 5
# Of each network's gradients: one far above the clipping norm, two below it.
GRADIENT_NORM = {"backbone": 30.0, "dino_head": 2.9, "ibot_head": 0.01}


@functools.cache
def shapes():
  """Shapes of a student with every kind of parameter, registers too."""
  backbone = vit.VisionTransformer(
    patch_size=14,
    pos_grid=2,
    width=8,
    depth=DEPTH,
    heads=2,
    ffn="swiglu",
    registers=1,
    pool="gap",
    drop_path=0.0,
    layerscale_init=1e-5,
    dtype="float32",
    remat="none",
    unroll=1,
    attention="xla",
  )
  head = heads.DINOHead(hidden=8, bottleneck=4, prototypes=6, dtype="float32")
  image, key = np.zeros((1, 28, 28, 3)), jax.random.key(0)
  head_shapes = jax.eval_shape(head.init, key, np.zeros((1, 8)))["params"]
  return {
    "backbone": jax.eval_shape(backbone.init, key, (image,), (None,))["params"],
    "dino_head": head_shapes,
    "ibot_head": head_shapes,
  }


def random_tree(seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes())


def norm_of(tree):
  return np.sqrt(sum(float(np.square(x).sum()) for x in jax.tree.leaves(tree)))


def gradients(step):
  tree = random_tree(100 + step)
  for network, norm in GRADIENT_NORM.items():
    scale = norm / norm_of(tree[network])
    tree[network] = jax.tree.map(lambda x, s=scale: x * np.float32(s), tree[network])
  return tree


def flat(tree):
  return {
    "/".join(part.key for part in path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def learning_rate(step):
  return 0.01 * (step + 1)


def weight_decay(step):
  return 0.04 + 0.02 * step


def make():
  return optimizer.adamw(
    learning_rate=learning_rate,
    weight_decay=weight_decay,
    depth=DEPTH,
    b1=B1,
    b2=B2,
    eps=EPS,
    clip_norm=CLIP,
    layer_decay=LAYER_DECAY,
    patch_embed_lr_scale=PATCH_SCALE,
    freeze_prototypes_steps=FREEZE,
  )


def is_decayed(name):
  return name.split("/")[-1] not in ("bias", "scale", "gamma")


def multiplier(name):
  """[] or, for stacked blocks, [depth]."""
  network, part, *_ = name.split("/")
  if part == "blocks":
    return np.array([LAYER_DECAY ** (DEPTH + 1 - (i + 1)) for i in range(DEPTH)])
  if network != "backbone" or part == "norm":
    return np.array(1.0)
  return np.array(LAYER_DECAY ** (DEPTH + 1) * (0.2 if part == "patch_embed" else 1))


def rate(name, step):
  return 0.0 if "prototypes" in name and step < FREEZE else learning_rate(step)


@functools.cache
def run():
  """Parameters after each of our steps, by name."""
  tx, params = make(), random_tree(0)
  state, history = jax.jit(tx.init)(params), []

  @jax.jit
  def update(gradients, state, params):
    updates, state = tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), state

  for step in range(STEPS):
    params, state = update(gradients(step), state, params)
    history.append(flat(params))
  return history


def test_updates_follow_adamw_in_float64_with_clipping_decay_and_multipliers():
  params = {k: v.astype(np.float64) for k, v in flat(random_tree(0)).items()}
  m = {k: np.zeros_like(v) for k, v in params.items()}
  v = {k: np.zeros_like(p) for k, p in params.items()}
  for step, found in enumerate(run()):
    grads = {k: g.astype(np.float64) for k, g in flat(gradients(step)).items()}
    for network in GRADIENT_NORM:
      names = [k for k in grads if k.startswith(network)]
      norm = np.sqrt(sum((grads[k] ** 2).sum() for k in names))
      for k in names:
        grads[k] *= min(1, CLIP / (norm + 1e-6))
    for k, g in grads.items():
      m[k] = B1 * m[k] + (1 - B1) * g
      v[k] = B2 * v[k] + (1 - B2) * g**2
      m_hat, v_hat = m[k] / (1 - B1 ** (step + 1)), v[k] / (1 - B2 ** (step + 1))
      decay = weight_decay(step) * params[k] if is_decayed(k) else 0
      scale = multiplier(k)
      scale = scale.reshape(scale.shape + (1,) * (params[k].ndim - scale.ndim))
      params[k] -= rate(k, step) * scale * (m_hat / (np.sqrt(v_hat) + EPS) + decay)
      np.testing.assert_allclose(found[k], params[k], 2e-5, 2e-6, err_msg=k)


def test_updates_equal_torch_adamw_with_one_group_per_parameter():
  tensors, groups = {}, []
  for name, value in flat(random_tree(0)).items():
    # Stacked blocks are DEPTH parameters, each with its own rate.
    parts = list(value) if "/blocks/" in name else [value]
    scales = np.broadcast_to(multiplier(name), len(parts))
    tensors[name] = [torch.nn.Parameter(torch.tensor(part)) for part in parts]
    for tensor, scale in zip(tensors[name], scales, strict=True):
      groups.append(dict(params=[tensor], name=name, scale=float(scale)))
  reference = torch.optim.AdamW(groups, betas=(B1, B2), eps=EPS)
  for step, found in enumerate(run()):
    for name, value in flat(gradients(step)).items():
      parts = list(value) if "/blocks/" in name else [value]
      for tensor, part in zip(tensors[name], parts, strict=True):
        tensor.grad = torch.tensor(part)
    for network in GRADIENT_NORM:
      mine = [t for n, ts in tensors.items() if n.startswith(network) for t in ts]
      torch.nn.utils.clip_grad_norm_(mine, CLIP)
    for group in reference.param_groups:
      group["lr"] = rate(group["name"], step) * group["scale"]
      group["weight_decay"] = weight_decay(step) * is_decayed(group["name"])
    reference.step()
    for name, parts in tensors.items():
      wanted = np.stack([part.detach().numpy() for part in parts])
      wanted = wanted.reshape(found[name].shape)
      np.testing.assert_allclose(found[name], wanted, 2e-5, 2e-6, err_msg=name)


def test_each_network_is_clipped_by_its_own_norm():
  tx = optimizer.clip_per_network(CLIP)
  clipped, _ = jax.jit(tx.update)(gradients(0), tx.init(None))
  norms = {network: norm_of(g) for network, g in clipped.items()}
  assert norms["backbone"] == pytest.approx(3.0, rel=1e-5)
  assert norms["dino_head"] == pytest.approx(2.9, rel=1e-5)
  assert norms["ibot_head"] == pytest.approx(0.01, rel=1e-5)


def test_every_kind_of_parameter_is_decayed_or_not_as_in_the_recipe():
  mask = flat(optimizer.decay_mask(shapes()))
  kinds = {name: bool(value) for name, value in mask.items()}
  head = {
    **{f"fc{i}/kernel": True for i in (1, 2, 3)},
    **{f"fc{i}/bias": False for i in (1, 2, 3)},
    "prototypes/v": True,
    "prototypes/gain": True,
  }
  blocks = {
    **{f"{norm}/{x}": False for norm in ("norm1", "norm2") for x in ("scale", "bias")},
    **{f"{scale}/gamma": False for scale in ("ls1", "ls2")},
    **{f"{x}/kernel": True for x in ("attn/qkv", "attn/proj", "mlp/w12", "mlp/w3")},
    **{f"{x}/bias": False for x in ("attn/qkv", "attn/proj", "mlp/w12", "mlp/w3")},
  }
  tokens = ("cls_token", "mask_token", "register_tokens", "pos_embed")
  assert kinds == {
    **{f"backbone/{token}": True for token in tokens},
    "backbone/patch_embed/kernel": True,
    "backbone/patch_embed/bias": False,
    **{f"backbone/blocks/{name}": value for name, value in blocks.items()},
    "backbone/norm/scale": False,
    "backbone/norm/bias": False,
    **{f"dino_head/{name}": value for name, value in head.items()},
    **{f"ibot_head/{name}": value for name, value in head.items()},
  }


def test_learning_rates_fall_with_distance_from_the_heads():
  scales = flat(
    optimizer.lr_scales(
      shapes(), depth=DEPTH, layer_decay=LAYER_DECAY, patch_embed_lr_scale=PATCH_SCALE
    )
  )
  for name, scale in scales.items():
    if name.startswith("backbone/blocks"):
      wanted = [0.9**2, 0.9**1]
    elif name.startswith("backbone/patch_embed"):
      wanted = [0.9**3 * 0.2]
    elif name.startswith("backbone/norm") or "head" in name:
      wanted = [1.0]
    else:  # tokens and positions
      wanted = [0.9**3]
    np.testing.assert_allclose(scale.ravel(), wanted, rtol=1e-6, err_msg=name)
    assert scale.ndim == 0 or scale.shape[0] == DEPTH


def test_prototypes_stand_still_at_first_while_their_moments_accumulate():
  start, history = flat(random_tree(0)), run()
  for name, value in start.items():
    for step in range(FREEZE):
      assert (history[step][name] == value).all() == ("prototypes" in name), name
    assert (history[FREEZE][name] != value).any(), name
  # A fresh Adam would move every weight by the learning rate; this one is at its third.
  name = "dino_head/prototypes/v"
  moved = (start[name] - history[FREEZE][name]) / learning_rate(FREEZE)
  adam = moved - weight_decay(FREEZE) * start[name]
  assert np.abs(np.abs(adam) - 1).max() > 0.1
