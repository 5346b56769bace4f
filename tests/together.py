"""Processes that train together on one machine, for multiprocess_test.py and bench/."""

import copy
import functools
import os
import pathlib
import pickle
import subprocess
import sys

import collectives
import dino_mesh_test
import jax
import numpy as np
from absl import app, flags
from jax.experimental import multihost_utils

from dinojax import sharding
from dinojax.runtime import processes

ROOT = pathlib.Path(__file__).parent.parent
DATA = flags.DEFINE_integer("together_data", 1, "As config.mesh.data.")
OUT = flags.DEFINE_string("together_out", None, "Results go to OUT.0, OUT.1 and so on.")


def config(devices):
  """With as many images as the devices divide."""
  changed = copy.deepcopy(dino_mesh_test.CONFIG)
  with changed.unlocked():
    changed.data.batch_size = 24 if devices % 3 == 0 else 16
  return changed


@functools.cache
def alone(devices):
  """The scalars and the student of one device, for the images of several."""
  mesh = dino_mesh_test.one_device_mesh()
  history, state = dino_mesh_test.train(mesh, config(devices))
  return history, jax.device_get(state.student)


def check(out, *, count, devices, data):
  """Starts `count` processes, and compares what each has done with one device."""
  result = subprocess.run(
    [
      *(
        sys.executable,
        "launch/local.py",
        "--module=together",
        f"--together_out={out}",
      ),
      *(f"--processes={count}", f"--devices={devices}", f"--together_data={data}"),
    ],
    cwd=ROOT,
    env={
      **os.environ,
      "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiles in half the time
      "XLA_FLAGS": "",
      "PYTHONPATH": str(ROOT / "tests"),
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stdout
  wanted_history, wanted_student = alone(count * devices)
  orders = []
  for i in range(count):
    history, student, racing, order = pickle.loads(
      pathlib.Path(f"{out}.{i}").read_bytes()
    )
    for found, wanted in zip(history, wanted_history, strict=True):
      for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, 1e-5, 1e-5, err_msg=name)
    dino_mesh_test.close(student, wanted_student)
    assert racing == []
    orders.append(order)
  assert orders[0] and all(order == orders[0] for order in orders)


def main(_):
  """Trains, and writes the results and the order of collectives in each program."""
  number, _ = processes.join()
  sharding.SMALLEST_SHARDED = 2**9
  mesh = sharding.make_mesh(data=DATA.value, fsdp=-1)
  processes.meet("connect")
  with collectives.compiled() as programs:
    sharding.connect(mesh)
    history, state = dino_mesh_test.train(mesh, config(mesh.size))
    student = multihost_utils.process_allgather(state.student, tiled=True)
    texts = programs()
  racing = [pair for text in texts for pair in collectives.racing(text)]
  order = [collectives.order(text) for text in texts]
  with open(f"{OUT.value}.{number}", "wb") as file:
    pickle.dump((history, student, racing, order), file)
  processes.meet("done")


if __name__ == "__main__":
  app.run(main)
