"""Which process of how many: what each environment says, and what it leaves open."""

import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from dinojax import errors
from dinojax.runtime import processes

# Two slices of two hosts; GKE sets the first two in every pod with TPUs.
TPU = {
  "TPU_WORKER_HOSTNAMES": "run-1-0.run,run-1-1.run",
  "TPU_WORKER_ID": "1",
  "JOB_COMPLETION_INDEX": "1",
}
SLICES = {
  "MEGASCALE_NUM_SLICES": "2",
  "MEGASCALE_SLICE_ID": "1",
  "MEGASCALE_COORDINATOR_ADDRESS": "run-0-0.run",
}
# As in: srun --nodes=2 --ntasks-per-node=4 of a job of 16 tasks.
SLURM = {
  "SLURM_JOB_ID": "5000",
  "SLURM_NTASKS": "16",
  "SLURM_STEP_ID": "1",
  "SLURM_STEP_NUM_TASKS": "8",
  "SLURM_STEP_NODELIST": "node[07-08]",
  "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
  "SLURM_PROCID": "6",
  "SLURM_LOCALID": "2",
}
POD = {
  "JOB_COMPLETION_INDEX": "3",
  "JAX_NUM_PROCESSES": "4",
  "JAX_COORDINATOR_ADDRESS": "run-0.run:29000",
}


@pytest.mark.parametrize(
  "environ",
  [
    {},
    {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},  # one TPU host
    # A batch script without srun, and a shell of salloc, which may be a step itself.
    {"SLURM_JOB_ID": "5000", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
    {**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "4294967290"},
    {"JOB_COMPLETION_INDEX": "0"},
  ],
)
def test_a_process_without_others_is_alone(environ):
  assert processes.detect(environ) is None


def test_a_tpu_slice_on_gke_counts_its_hosts_and_slices():
  place = processes.detect(TPU)
  assert place == processes.Place(1, 2, "run-1-0.run:8482", "TPU on GKE")
  place = processes.detect({**TPU, **SLICES})
  assert place == processes.Place(3, 4, "run-0-0.run:8482", "TPU on GKE")
  addresses = {"TPU_PROCESS_ADDRESSES": "a:8471,b:8471", "TPU_WORKER_ID": "0"}
  assert processes.detect(addresses).coordinator == "a:8482"


def test_a_task_of_an_srun_step_has_the_steps_numbers_and_one_gpu_of_its_host():
  place = processes.detect(SLURM)
  assert (place.number, place.count, place.devices) == (6, 8, (2,))
  assert place.means == "SLURM"
  host, port = place.coordinator.split(":")
  assert host == "node07"
  assert 61_440 <= int(port) < 65_536
  other_step = processes.detect({**SLURM, "SLURM_STEP_ID": "2"})
  assert other_step.coordinator != place.coordinator


@pytest.mark.parametrize(
  "environ",
  [
    {"SLURM_STEP_TASKS_PER_NODE": "1(x8)", "SLURM_LOCALID": "0"},  # one task per host
    {"CUDA_VISIBLE_DEVICES": "5"},  # as by --gpus-per-task=1
  ],
)
def test_a_task_that_slurm_has_given_its_gpus_takes_all_it_sees(environ):
  assert processes.detect({**SLURM, **environ}).devices is None


@pytest.mark.parametrize(
  ("nodes", "first"),
  [
    ("node1", "node1"),
    ("node1,gpu2", "node1"),
    ("node[001,007-015],gpu2", "node001"),
    ("rack[2-3]-node[08,12]", "rack2-node08"),
  ],
)
def test_process_0_of_a_step_is_on_the_first_of_its_nodes(nodes, first):
  place = processes.detect({**SLURM, "SLURM_STEP_NODELIST": nodes})
  assert place.coordinator.startswith(f"{first}:")


def test_a_pod_of_a_job_needs_to_be_told_how_many_there_are():
  place = processes.Place(3, 4, "run-0.run:29000", "Kubernetes")
  assert processes.detect(POD) == place
  index = {"JAX_PROCESS_ID": "2"}  # as Kubeflow sets it
  assert processes.detect({**POD, **index}).number == 2
  with pytest.raises(
    errors.UserError, match=r"pod 3 of a Job, but JAX_NUM_PROCESSES=;"
  ):
    processes.detect({"JOB_COMPLETION_INDEX": "3"})


def test_a_number_that_is_none_is_named():
  with pytest.raises(errors.UserError, match="TPU_WORKER_ID=x in the environment"):
    processes.detect({**TPU, "TPU_WORKER_ID": "x"})
  with pytest.raises(errors.UserError, match="TPU_WORKER_ID= in the environment"):
    processes.detect({"TPU_WORKER_HOSTNAMES": "a,b"})


@pytest.mark.parametrize(
  ("given", "said"),
  [
    ({"coordinator": "a:1", "num_processes": 2}, "--process_id go together"),
    ({"num_processes": 2, "process_id": 1}, "--process_id go together"),
    (
      {"coordinator": "a:1", "num_processes": 2, "process_id": 2},
      "--process_id=2 must be from 0 to --num_processes=2 less 1",
    ),
    ({"coordinator": "a", "num_processes": 2, "process_id": 1}, "must be HOST:PORT"),
  ],
)
def test_flags_that_do_not_tell_a_place_are_refused(given, said):
  flags.FLAGS.mark_as_parsed()
  with flagsaver.flagsaver(**given), pytest.raises(errors.UserError, match=said):
    processes.join()


def test_flags_go_before_what_the_environment_says(monkeypatch):
  flags.FLAGS.mark_as_parsed()
  for name, value in POD.items():
    monkeypatch.setenv(name, value)
  assert processes.join(apart=True) == (3, 4)
  with flagsaver.flagsaver(num_processes=2, process_id=1):
    assert processes.join(apart=True) == (1, 2)
  with flagsaver.flagsaver(multihost=False):
    assert processes.join() == (0, 1)


JOIN = """
import time
from dinojax.commands import cli
from dinojax.runtime import processes

def main(_):
  print(processes.join(), flush=True)
  time.sleep(60)

cli.run(main, on_interrupt="ended early", config=False)
"""


@pytest.mark.process
def test_processes_join_where_a_proxy_is_set_and_end_together_on_a_signal_to_one():
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    address = f"localhost:{probe.getsockname()[1]}"
  given = [f"--coordinator={address}", "--num_processes=2", "--join_seconds=60"]
  environ = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
    "http_proxy": "http://localhost:9",  # JAX's own start fails with it
  }
  pair = [
    subprocess.Popen(
      [sys.executable, "-c", JOIN, *given, f"--process_id={i}"],
      env=environ,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  for i, process in enumerate(pair):
    assert process.stdout.readline() == f"({i}, 2)\n"
  pair[1].send_signal(signal.SIGTERM)
  said = [process.communicate(timeout=60)[1] for process in pair]
  assert [process.returncode for process in pair] == [143, 143], said
  for i, told in enumerate(("process 1 of 2 ended: ", "")):
    assert said[i] == (
      f"dinojax: process {i} of 2, by --coordinator; process 0 is {address}\n"
      f"\ndinojax: {told}ended early\n"
    )
