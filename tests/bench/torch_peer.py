"""torch_step.py in a process of its own, a turn at a time.

So thread pools, CUDA libraries and peak memory are not mixed with ours: the process
that runs JAX never imports PyTorch.
"""

import multiprocessing
import pathlib
import sys
import time

import ml_collections


def host_peak(pid) -> int | None:
  """Peak resident bytes of a process, where the kernel tells."""
  try:
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
  except OSError:
    return None
  return int(status.split("VmHWM:")[1].split()[0]) * 1024


class Peer:
  """Starts the process; each turn times one step and one matrix product.

  Args:
    config: the experiment.
    batch: the host batch.
    side: of the square matrices of the product, in the config's dtype.
    compiled: whether to use torch.compile.
    device: "cuda" or "cpu".
  """

  def __init__(self, config, batch, *, side, compiled, device):
    spawn = multiprocessing.get_context("spawn")
    self.pipe, theirs = spawn.Pipe()
    options = dict(side=side, compiled=compiled, device=device)
    arguments = theirs, config.to_dict(), batch
    self.process = spawn.Process(
      target=serve, args=arguments, kwargs=options, daemon=True
    )
    self.process.start()
    theirs.close()

  def turn(self) -> dict:
    """Seconds of a step, by the wall and of the CPU, and of a product; loss; bytes."""
    try:
      self.pipe.send(True)
      answer = self.pipe.recv()
    except (EOFError, OSError):
      sys.exit("the PyTorch peer failed, see above; try a smaller --batch, or --apart")
    return {**answer, "peak": answer["peak"] or host_peak(self.process.pid)}

  def close(self):
    """Ends the process, and with it its hold on the device's memory."""
    self.pipe.send(False)
    self.process.join()


def serve(pipe, config, batch, *, side, compiled, device):
  """Runs in the process: a turn for each True that `pipe` receives, until a False."""
  import torch
  import torch_step

  config = ml_collections.ConfigDict(config)
  cuda = device == "cuda"
  dtype = getattr(torch, config.backbone.dtype)
  if cuda and dtype == torch.float32:
    torch.set_float32_matmul_precision("high")  # TF32, which is XLA's default
  step = torch_step.TrainStep(config, device=device, compiled=compiled)
  batch = step.put(batch)
  matrix = torch.randn(side, side, device=device, dtype=dtype)

  def timed(function, *args):
    cpu, wall = time.process_time(), time.perf_counter()
    result = function(*args)
    if cuda:
      torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu, result

  while pipe.recv():
    seconds, cpu_seconds, scalars = timed(step, batch)
    product_seconds, _, _ = timed(torch.matmul, matrix, matrix)
    peak = torch.cuda.max_memory_allocated() if cuda else None
    loss = float(scalars["loss"])
    pipe.send(
      dict(step=seconds, cpu=cpu_seconds, product=product_seconds, loss=loss, peak=peak)
    )
