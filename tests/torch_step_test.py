"""The PyTorch step that benchmarks compare ours with is the same method, by numbers."""

import pathlib
import sys

import jax
import numpy as np
import pytest
import tiny
import torch

from dinojax import assembly, dino, sharding

sys.path.insert(0, str(pathlib.Path(__file__).parent / "bench"))

import torch_step

KEY = jax.random.key(3)


def make_config(kind):
  """Two configs that between them take every branch of the method."""
  config = tiny.config()
  with config.unlocked():
    config.remat = "none"
    config.backbone.update(pos_grid=tiny.GRID + 1, drop_path=0.0)  # resized everywhere
    config.optimizer.update(freeze_prototypes_steps=2, layer_decay=0.8, clip_norm=0.5)
    config.schedules.learning_rate.update(peak=1e-3, warmup_steps=1)
    config.schedules.teacher_temp.update(start=0.1, final=0.2, warmup_steps=4)
    if kind == "centering":
      config.losses.targets = "centering"
      config.backbone.update(ffn="mlp", pool="cls", registers=2)
      del config.heads.ibot
  return config


def make_ours(config):
  """Arrays of a state as in the middle of a run, by field, and the run's functions."""
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), sharding.AXES)
  run = assembly.assemble(config, mesh)
  shapes = run.abstract_state
  trees = {
    name: tiny.noise(getattr(shapes, name), seed)
    for seed, name in enumerate(("student", "teacher", "centers"))
  }
  return trees, run


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


@pytest.fixture(autouse=True)
def one_thread():
  """Threads of PyTorch spin while they wait: on a busy machine, for seconds a step."""
  threads = torch.get_num_threads()
  torch.set_num_threads(1)
  yield
  torch.set_num_threads(threads)


def test_targets_and_losses_by_sinkhorn_are_ours():
  config = make_config("sinkhorn")
  batch, (params, run) = tiny.batch(config), make_ours(config)

  @jax.jit
  def losses(student, teacher, batch):
    logits = dino.teacher_logits(teacher, batch, nets=run.nets)
    targets, _ = dino.teacher_targets(logits, {}, config.schedules.teacher_temp.start)
    groups = np.arange(config.data.batch_size // config.group_size)
    how = dict(nets=run.nets, cfg=config, rates={"local_weight": 1.0}, earlier=None)
    return dino.student_loss(student, targets, batch, groups, key=KEY, **how)[1]

  ours = losses(params["student"], params["teacher"], batch)
  peer = torch_step.TrainStep(config, device="cpu", compiled=False)
  load(peer.student, params["student"])
  load(peer.teacher, params["teacher"])
  rows = peer.put(batch)
  with torch.no_grad():
    temp = torch.tensor(config.schedules.teacher_temp.start)
    _, theirs = peer.student_loss(peer.teacher_targets(rows, temp), rows)
  assert theirs.keys() == {"loss", "loss_dino", "loss_ibot", "loss_koleo"}
  for name, value in theirs.items():
    np.testing.assert_allclose(value, ours[name], 1e-4, 1e-5, err_msg=name)


# Of Sinkhorn, the losses alone are above: the rest of a step has no branch for it.
@pytest.mark.parametrize(
  "kind", [pytest.param("sinkhorn", marks=pytest.mark.long), "centering"]
)
def test_every_scalar_of_four_steps_is_ours(kind):
  # Losses show the forward pass, norms the backward, later steps the updates.
  config = make_config(kind)
  batch = tiny.batch(config)
  params, run = make_ours(config)
  state = tiny.zeros(run.abstract_state).replace(**params)
  peer = torch_step.TrainStep(config, device="cpu", compiled=False)
  load(peer.student, state.student)
  load(peer.teacher, state.teacher)
  assert peer.centers.keys() == state.centers.keys()
  peer.centers = {name: torch.tensor(c) for name, c in state.centers.items()}
  step = run.train_step.lower(state, batch, KEY).compile()  # one for all that it gets
  rows, seen = peer.put(batch), []
  for i in range(4):
    state, ours = step(state, batch, KEY)
    theirs = peer(rows)
    assert {"loss", "loss_dino", "loss_ibot", "loss_koleo"} < theirs.keys()
    for name, value in theirs.items():
      close = dict(rtol=1e-4, atol=1e-5)  # KoLeo passes through zero
      np.testing.assert_allclose(value, ours[name], **close, err_msg=f"{name}, {i}")
    seen.append([float(ours[f"loss_{part}"]) for part in ("dino", "ibot", "koleo")])
  assert (np.abs(np.diff(seen, axis=0))[1:] > 1e-3 * np.abs(seen[1:-1])).all(), seen


def test_drop_path_keeps_as_many_crops_of_every_group_as_ours():
  block = torch_step.torch_vit.Block(
    width=16, heads=2, ffn="mlp", layerscale_init=1.0, drop_path=0.4
  )
  x, groups = torch.randn(12, 5, 16), 2
  with torch.no_grad():
    delta = block.residual(x, groups, block.attn) - x
    ran = delta.flatten(1).any(1)
    assert ran.unflatten(0, (groups, 6)).sum(1).tolist() == [3, 3]  # int(6 * 0.6)
    scaled = block.attn(x) * 6 / 3
  torch.testing.assert_close(delta[ran], scaled[ran], rtol=1e-4, atol=1e-5)
