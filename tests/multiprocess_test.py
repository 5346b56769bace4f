"""The same training in two processes: real ones, that talk over loopback."""

import os
import pathlib
import pickle
import socket
import subprocess
import sys

import dino_mesh_test
import jax
import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
PROCESS = """
import pickle, sys
import jax

address, process, target = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(
  address, 2, process, cluster_detection_method="deactivate"
)

import dino_mesh_test
from dinojax import sharding
from jax.experimental import multihost_utils

sharding.SMALLEST_SHARDED = 2**9
history, state = dino_mesh_test.train(sharding.make_mesh(data=2, fsdp=4))
student = multihost_utils.process_allgather(state.student, tiled=True)
if process == 0:
  with open(target, "wb") as file:
    pickle.dump((history, student), file)
"""


def test_two_processes_of_four_devices_train_as_one_device_does(tmp_path):
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    address = f"localhost:{probe.getsockname()[1]}"
  environment = {
    **os.environ,
    "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
  }
  target = tmp_path / "result"
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", PROCESS, address, str(i), str(target)],
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i in range(2)
  ]
  outputs = [process.communicate(timeout=300)[0] for process in processes]
  assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
  history, student = pickle.loads(target.read_bytes())
  wanted_history, wanted = dino_mesh_test.train(dino_mesh_test.one_device_mesh())
  for found, wanted_scalars in zip(history, wanted_history, strict=True):
    for name, value in wanted_scalars.items():
      np.testing.assert_allclose(found[name], value, 1e-5, 1e-5, err_msg=name)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    student,
    jax.device_get(wanted.student),
  )
