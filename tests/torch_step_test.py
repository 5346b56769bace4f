"""The PyTorch step that benchmarks compare ours with is the same method, by numbers."""

import functools
import pathlib
import sys

import jax
import numpy as np
import pytest
import tiny
import torch

from dinojax import assembly, sharding

sys.path.insert(0, str(pathlib.Path(__file__).parent / "bench"))

import torch_step

KEY = jax.random.key(3)


@functools.cache
def setup(kind):
  """Config, batch, our jitted step and its first state, on one device."""
  config = tiny.config()
  with config.unlocked():
    # Positions are resized even for global crops; AdamW's first steps are of size lr.
    config.backbone.update(pos_grid=tiny.GRID + 1, drop_path=0.0)
    config.optimizer.update(freeze_prototypes_steps=2, layer_decay=0.8, clip_norm=0.5)
    config.schedules.learning_rate.update(peak=1e-3, warmup_steps=1)
    config.schedules.teacher_temp.update(start=0.1, warmup_steps=0, final=0.1)
    if kind == "centering":
      config.losses.targets = "centering"
      config.backbone.update(ffn="mlp", pool="cls", registers=2)
      config.remat = False
      del config.heads.ibot
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), sharding.AXES)
  run = assembly.assemble(config, mesh)
  return config, tiny.batch(config), run, jax.device_get(run.init(KEY))


def noisy(tree, seed):
  """Parameters of which none is at a value that hides a mistake, such as 0."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: x + rng.normal(scale=0.1, size=x.shape).astype(np.float32), tree
  )


def to_torch(params):
  """Our parameters by torch_step's names; torch linears are [out, in]."""
  found = {}

  def add(name, layer):
    weight = layer["kernel"].T if "kernel" in layer else layer["scale"]
    found.update({f"{name}.weight": weight, f"{name}.bias": layer["bias"]})

  for network, tree in params.items():
    if network != "backbone":
      prototypes = tree["prototypes"]
      name = f"{network}.prototypes.parametrizations.weight.original"
      found |= {f"{name}0": prototypes["gain"][:, None], f"{name}1": prototypes["v"].T}
      for layer in ("fc1", "fc2", "fc3"):
        add(f"{network}.{layer}", tree[layer])
      continue
    kernel = tree["patch_embed"]["kernel"].reshape(14, 14, 3, -1)  # [row, column, c, D]
    found["backbone.patch_embed.weight"] = kernel.transpose(3, 2, 0, 1)
    found["backbone.patch_embed.bias"] = tree["patch_embed"]["bias"]
    add("backbone.norm", tree["norm"])
    for token in tree.keys() - {"patch_embed", "norm", "blocks"}:
      found[f"backbone.{token}"] = tree[token]
    blocks = tree["blocks"]
    for i in range(len(blocks["ls1"]["gamma"])):
      block = jax.tree.map(lambda x, i=i: x[i], blocks)
      name = f"backbone.blocks.{i}"
      found[f"{name}.gamma1"] = block["ls1"]["gamma"]
      found[f"{name}.gamma2"] = block["ls2"]["gamma"]
      for part in ("attn", "mlp"):
        for layer in block[part]:
          add(f"{name}.{part}.{layer}", block[part][layer])
      for norm in ("norm1", "norm2"):
        add(f"{name}.{norm}", block[norm])
  return {name: torch.tensor(np.array(value)) for name, value in found.items()}


def load(networks, params):
  missing, unexpected = networks.load_state_dict(to_torch(params), strict=False)
  assert set(missing) == {"backbone.mean", "backbone.std"} and not unexpected


def make_pair(kind):
  """Our state and step, the peer with the same parameters, and the host batch."""
  config, batch, run, state = setup(kind)
  state = state.replace(
    student=noisy(state.student, 0),
    teacher=noisy(state.teacher, 1),
    centers=noisy(state.centers, 2),
  )
  peer = torch_step.TrainStep(config, device="cpu", compiled=False)
  load(peer.student, state.student)
  load(peer.teacher, state.teacher)
  peer.centers = {k: torch.tensor(np.array(v)) for k, v in state.centers.items()}
  return state, run.train_step, peer, batch


@pytest.mark.parametrize("kind", ["sinkhorn", "centering"])
def test_losses_norms_and_what_follows_from_updates_are_ours(kind):
  state, step, peer, batch = make_pair(kind)
  rows = peer.put(batch)
  for i in range(4):
    state, ours = step(state, batch, KEY)
    theirs = peer(rows)
    for name, value in theirs.items():
      print(i, name, float(value), float(ours[name]), float(value) / float(ours[name]) - 1)
