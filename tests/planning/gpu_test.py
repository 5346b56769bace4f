"""The training step compiled for GPUs that are not there: what is in the program."""

import collections
import math
import pathlib
import re

import jax
import plan_test
import pytest

from dinojax import assembly, preflight, sharding
from dinojax.planning import hlo, memory, topology, traffic
from experiments import vitg14, vits14

pytestmark = [
  pytest.mark.gpu_compile,
  pytest.mark.skipif(
    not all(map(topology.installed, topology.GPU_PACKAGES)),
    reason="compiles for GPUs; pip install -e '.[plan-gpu]'",
  ),
]
ROOT = pathlib.Path(__file__).parent.parent.parent
SMALL = {
  "group_size": 2,
  "data.batch_size": 32,
  "augment.num_local": 2,
  "knn.every": 0,
  "backbone.width": 256,
  "backbone.depth": 3,
  "backbone.heads": 4,
  "heads.dino.hidden": 64,
  "heads.dino.prototypes": 512,
}
TWO_HEADS = {"heads.ibot.hidden": 64, "heads.ibot.prototypes": 512}
KINDS = {  # hosts x GPUs, experiment, what else is changed, tokens that cuDNN sees
  "GELU": ("1x1", vits14, {}, (258, 50)),
  "SwiGLU with registers, accumulated": (
    *("1x8", vitg14),
    TWO_HEADS | {"backbone.registers": 4, "accumulation": 2},
    (262, 54),
  ),
  "SwiGLU on two hosts": ("2x8", vitg14, TWO_HEADS, (258, 50)),
}


@pytest.fixture(scope="module", params=KINDS)
def step(request):
  """(tokens, config, assembly, compiled step, its program)."""
  shape, experiment, fields, tokens = KINDS[request.param]
  config = experiment.get_config()
  config.update_from_flattened_dict(SMALL | fields)
  devices = topology.devices(f"h100:{shape}")
  preflight.check(config, devices=len(devices))
  mesh = sharding.make_mesh(**config.mesh, devices=devices)
  run = assembly.assemble(config, mesh)
  with jax.set_mesh(mesh):
    compiled = topology.compile_for(devices, run.lower_step())
  return tokens, config, run, compiled, hlo.Program(compiled.as_text())


def collectives(program):
  """(op, how often it runs, elements of each operand)."""
  for run in program.runs():
    if run.op.kind.removesuffix("-start") in traffic.KINDS:
      scope = program.computations[run.computation]
      operands = [scope[name] for name in run.op.operands]
      yield run.op, run.times, [math.prod(x.arrays[0].dims) for x in operands]


def test_attention_is_cudnns_and_no_part_of_it_runs_twice(step):
  tokens, *_, program = step
  seen = collections.Counter()
  for run in program.runs():
    if "__cudnn$fmha" in run.op.attributes:
      scores = re.search(r'"dimensions": \["\d+", "\d+", "(\d+)"', run.op.attributes)
      seen["Backward" in run.op.attributes, int(scores[1])] += 1
      padded = int(scores[1]) in (258, 262)  # tokens of a global crop, and one more
      assert ('"mask_type": "PADDING"' in run.op.attributes) == padded
  globals_, locals_ = tokens
  # The teacher sees global crops alone. The backward pass recomputes none.
  assert seen[False, globals_] == 2 and seen[False, locals_] == 1
  assert seen[True, globals_] == 1 and seen[True, locals_] == 1


def test_nothing_passes_by_the_host(step):
  *_, program = step
  ops = [run.op for run in program.runs()]
  kinds = {op.kind.removesuffix("-start") for op in ops}
  assert not kinds & {"infeed", "outfeed", "send", "recv"}
  target = re.compile(r'custom_call_target="([^"]*)"')
  targets = {target.search(op.attributes)[1] for op in ops if op.kind == "custom-call"}
  assert all(name.startswith(("__cublas$", "__cudnn$")) for name in targets), targets


def test_the_new_state_takes_the_place_of_the_old_one(step):
  *_, run, compiled, _ = step
  aliased = compiled.memory_analysis().alias_size_in_bytes
  assert aliased >= memory.on_device(run.abstract_state)


def test_the_gradient_of_each_weight_is_scattered_once_and_nowhere_reduced_whole(step):
  _, config, run, _, program = step
  blocks = run.abstract_state.student["backbone"]["blocks"]
  mesh = jax.tree.leaves(blocks)[0].sharding.mesh
  split = [x for x in jax.tree.leaves(blocks) if "fsdp" in x.sharding.spec]
  scattered, reduced = collections.Counter(), [0]
  for op, times, sizes in collectives(program):
    if times != config.accumulation * config.backbone.depth:
      continue
    large = [n for n in sizes if n >= sharding.SMALLEST_SHARDED]
    if op.kind.startswith("reduce-scatter"):
      scattered.update(large)
    if op.kind.startswith("all-reduce"):
      reduced += sizes
  if mesh.size == 1:
    assert not scattered and reduced == [0]
    return
  assert len(split) >= 3
  assert scattered == collections.Counter(math.prod(x.shape[1:]) for x in split)
  # All shards of a device together, between hosts.
  shards = sum(math.prod(x.shape[1:]) for x in split) / mesh.shape["fsdp"]
  assert max(reduced) <= shards + sharding.SMALLEST_SHARDED


def test_most_collectives_run_beside_other_work(step):
  *_, program = step
  sizes = collections.Counter()
  for op, times, elements in collectives(program):
    assert op.kind.endswith("-start"), op.name
    sizes['"is_sync":false' in op.attributes] += times * sum(elements)
  assert sizes[True] >= 3 * sizes[False]


@pytest.mark.process
def test_a_step_is_planned_for_two_hosts_of_gpus(tmp_path):
  fields = SMALL | TWO_HEADS | {"backbone.depth": 2}
  settings = [f"{name}={value}" for name, value in fields.items()]
  found, printed = plan_test.planned(settings, "--topology=h200:2x8", folder=tmp_path)
  assert found["mesh"] == {"data": 2, "fsdp": 8}
  assert found["fits"] and 0 < found["seconds"] < found["days"] * 86_400
  assert found["hardware_flops"] == pytest.approx(
    found["model_flops"] + found["recomputed_flops"], rel=0.2
  )
  # Between two hosts, each device exchanges its shard of the gradients.
  shard = sum(found["parameters"].values()) / 8
  assert shard < found["collective_bytes"]["between hosts"] < 4 * shard
  for row in (
    r"machine +16 x H200",
    r"between hosts, if nothing hides it +[\d.]+ s, at 50 GB/s a device",
  ):
    assert re.search(row, printed), printed
