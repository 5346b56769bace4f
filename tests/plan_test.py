"""Plans, as a user asks for them: for a TPU slice that is not there, and for here."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest
import tiny

from dinojax import losses, plan, sharding
from dinojax.planning import costs, topology

ROOT = pathlib.Path(__file__).parent.parent
SMALL = (
  *("backbone.width=128", "backbone.depth=2", "backbone.heads=2", "group_size=2"),
  *("heads.dino.prototypes=512", "heads.ibot.prototypes=512", "data.batch_size=8"),
  *("heads.dino.hidden=64", "heads.ibot.hidden=64", "augment.num_local=2"),
  *("mesh.data=2", "mesh.fsdp=2"),
)


def run(*flags, code=0):
  done = subprocess.run(
    [
      *(sys.executable, "-m", "dinojax.plan", "--config=experiments/vitg14.py"),
      *(f"--config.{setting}" for setting in SMALL),
      *flags,
    ],
    cwd=ROOT,
    env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
    capture_output=True,
    text=True,
    timeout=400,
    check=False,
  )
  assert done.returncode == code, done.stdout + done.stderr
  return done


def test_a_step_is_planned_for_a_tpu_slice_that_is_not_there(tmp_path):
  done = run("--topology=v5e:2x2", f"--json={tmp_path / 'plan.json'}")
  assert "4 x v5e" in done.stdout
  assert done.stderr == ""  # libtpu misses its chips, and is not heard
  found = json.loads((tmp_path / "plan.json").read_text())
  assert found["fits"] and found["peak_bytes"] < found["memory_bytes"]
  assert found["seconds"] > 0 and found["seconds_by"] == "compiler's cycles"
  assert {"attention_forward", "attention_backward"} <= set(
    found["kernels_by_roofline"]
  )
  assert len(found["costliest"]) == 5
  assert found["hardware_flops"] == pytest.approx(
    found["model_flops"] + found["recomputed_flops"], rel=0.2
  )


def test_an_unknown_slice_is_one_line():
  done = run("--topology=v5e:3x5", code=1)
  assert done.stderr.startswith("dinojax: --topology=v5e:3x5 cannot be planned for")
  assert "Traceback" not in done.stderr


def test_the_devices_at_hand_are_planned_for_without_a_chip_to_compare_with():
  config = tiny.config()
  with config.unlocked():
    config.mesh.update(data=2, fsdp=4)
    config.data.batch_size = 16
  found = plan.make_plan(config, jax.devices())
  assert found["fits"] and "seconds" not in found
  assert sum(found["parameters"].values()) > 0
  assert found["mesh"] == {"data": 2, "fsdp": 4}
  assert "peak memory per device" in plan.table(found)


def test_the_losses_hold_two_arrays_of_rows_and_prototypes_and_no_third():
  devices = topology.devices("v5e:2x2")
  mesh = sharding.make_mesh(data=1, fsdp=1, devices=devices[:1])
  where, rows, prototypes, width = sharding.replicated(mesh), 512, 16_384, 64

  def shape(*dims):
    return jax.ShapeDtypeStruct(dims, "float32", sharding=where)

  def step(teacher, student, weights):
    targets = losses.sinkhorn_knopp(teacher @ weights, temp=0.05)

    def loss(student, weights):
      return losses.cross_entropy(student @ weights, targets, temp=0.1).mean()

    return jax.grad(loss, (0, 1))(student, weights)

  x, weights = shape(rows, width), shape(width, prototypes)
  compiled = jax.jit(step).lower(x, x, weights).compile()
  held = compiled.memory_analysis().temp_size_in_bytes / (rows * prototypes * 4)
  assert held < 2.2  # the logits of teacher and student; the gradient is never whole


def test_out_of_memory_says_how_much_is_missing_and_what_to_change():
  done = subprocess.run(
    [
      *(sys.executable, "-m", "dinojax.plan", "--config=experiments/vits14.py"),
      *("--topology=v5e:2x2", "--config.mesh.fsdp=2", "--config.mesh.data=2"),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=400,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  missing = re.search(r"missing +([\d.]+) GiB", done.stdout)
  assert float(missing[1]) > 50  # 512 images on each of four chips
  helps = "--config.remat=matmuls, or --config.mesh.data=1 --config.mesh.fsdp=4, or a"
  assert helps in done.stdout


@pytest.mark.parametrize(
  "message",
  [
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.00G of 15.75G"
    " hbm. Exceeded hbm capacity by 1.25G.",
    "RESOURCE_EXHAUSTED: total memory required for HLO temporaries (17.00G) exceeds"
    " available HBM (15.75G).",
  ],
)
def test_both_ways_to_say_out_of_memory_are_understood(message):
  assert plan.exhausted(message) == (17 * 2**30, 15.75 * 2**30)
  assert plan.exhausted("INTERNAL: 17.00G of 15.75G") is None


def test_a_search_ranks_policies_meshes_and_scan_settings(capsys):
  config = tiny.config()
  with config.unlocked():
    config.backbone.update(depth=2, width=16)
    config.augment.num_local = 1
    config.mesh.update(data=2, fsdp=1)
  ranked = plan.search(config, jax.devices()[:2])
  tried = [(p["remat"], p["mesh"]["fsdp"], p["unroll"]) for p in ranked]
  assert len(set(tried)) == len(tried) == 5  # 4 policies, then unrolled
  assert ranked[0]["remat"] in ("none", "matmuls")  # no product is computed again
  assert capsys.readouterr().out.count("\n") == 5


def test_model_flops_of_the_reference_are_those_of_the_method():
  from experiments import vitg14

  config = vitg14.get_config()
  assert costs.model_flops(config) == pytest.approx(5.0e12, rel=0.03)
  with config.unlocked():
    config.backbone.drop_path = 0.0
  assert costs.model_flops(config) == pytest.approx(7.5e12, rel=0.03)
