"""GPUDirect: what pods of several GPU hosts ask of their nodes, and how they start."""

import dataclasses
import json
import subprocess
import sys

import pytest

from experiments import vitg14
from launch import accelerators, gpudirect, jobs, jobset, requirements

MACHINES = ("h200-16", "h100-mega-16")


def job(name, **changes):
  command = ("python", "-m", "dinojax.main")
  return jobs.Job(
    **{"name": "run", "image": "i:1", "command": command, **changes},
    accelerator=accelerators.find(name),
  )


def template(name, **changes):
  """The pod's template of a job."""
  [replicated] = jobset.render(job(name, **changes))["spec"]["replicatedJobs"]
  return replicated["template"]["spec"]["template"]


@pytest.mark.parametrize(
  ("name", "cards"),
  [
    ("h200-16", {f"eth{i + 2}": f"rdma-{i}" for i in range(8)}),
    ("h100-mega-16", {f"eth{i}": f"vpc{i}" for i in range(1, 9)}),
  ],
)
def test_a_pod_of_several_hosts_has_a_network_for_each_gpu(name, cards):
  annotations = template(name)["metadata"]["annotations"]
  found = json.loads(annotations["networking.gke.io/interfaces"])
  assert annotations["networking.gke.io/default-interface"] == "eth0"
  assert {x["interfaceName"]: x["network"] for x in found} == {
    "eth0": "default",
    **cards,
  }


@pytest.mark.parametrize("name", MACHINES)
def test_what_a_container_mounts_is_a_volume_of_its_pod(name):
  spec = template(name)["spec"]
  volumes = [volume["name"] for volume in spec["volumes"]]
  assert len(set(volumes)) == len(volumes)
  containers = [*spec["containers"], *spec.get("initContainers", [])]
  mounted = [{m["name"] for m in c["volumeMounts"]} for c in containers]
  assert set.union(*mounted) == set(volumes)


def test_the_daemon_of_tcpxo_starts_before_the_training_and_ends_with_it():
  found = template("h100-mega-16", tcpxo_daemon="v9")
  [daemon] = found["spec"]["initContainers"]
  assert daemon["restartPolicy"] == "Always"
  assert daemon["image"].endswith(":v9")
  [ready] = [e["value"] for e in daemon["env"] if e["name"] == "HEALTH_CHECK_LOG_FILE"]
  assert daemon["startupProbe"]["exec"]["command"] == ["cat", ready]
  key = f"devices.gke.io/container.{daemon['name']}"
  devices = json.loads(found["metadata"]["annotations"][key])
  assert {"path": "/dev/nvidia7"} in devices
  assert "initContainers" not in template("h200-16")["spec"]


@pytest.mark.parametrize("name", ["h200-8", "h100-mega-8", "h100-16", "v5p-128"])
def test_one_host_and_machines_without_gpudirect_are_as_without_it(name):
  assert template(name) == template(name, gpudirect=False)


@pytest.mark.parametrize("name", MACHINES)
def test_without_gpudirect_a_pod_asks_for_nothing_of_it(name):
  plain = template(name, gpudirect=False)
  assert "annotations" not in plain["metadata"]
  assert [volume["name"] for volume in plain["spec"]["volumes"]] == ["shm"]
  assert plain["spec"]["containers"][0]["command"][0] == "python"


@pytest.mark.parametrize(
  ("name", "gpudirect", "said"),
  [
    ("h200-16", True, "objects rdma-0 to rdma-7, and DaemonSet nccl-rdma-installer;"),
    ("h100-mega-16", True, "nri-device-injector, of a release that goes with --tcpxo"),
    ("h200-16", False, "these a3-ultragpu-8g nodes talk over the ordinary network"),
    ("h100-16", True, "these a3-highgpu-8g nodes talk over the ordinary network"),
  ],
)
def test_the_notes_name_what_the_cluster_must_have(name, gpudirect, said):
  notes = requirements.of(job(name, gpudirect=gpudirect), vitg14.get_config())
  assert said in "\n".join(notes)


def start(script, *command):
  fabric = gpudirect.of("a3-ultragpu-8g", hosts=2, wanted=True)
  fabric = dataclasses.replace(fabric, script=str(script))
  return subprocess.Popen(
    fabric.command(command),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_the_script_of_the_plugin_sets_variables_of_the_process_that_gets_signals(
  tmp_path,
):
  script = tmp_path / "set_nccl_env.sh"
  script.write_text("export NCCL_NET=gIB\nfalse\n")
  code = "import os, sys; print(os.getpid(), os.environ['NCCL_NET'], sys.argv[1])"
  with start(script, sys.executable, "-c", code, "a 'b' $HOME") as process:
    out, error = process.communicate(timeout=60)
    assert out == f"{process.pid} gIB a 'b' $HOME\n", error
  assert process.returncode == 0


def test_a_node_without_the_plugin_ends_the_job_with_its_path(tmp_path):
  with start(tmp_path / "none.sh", "true") as process:
    _, error = process.communicate(timeout=60)
  assert process.returncode == 1
  assert error == f"{tmp_path}/none.sh is missing on this node\n"
