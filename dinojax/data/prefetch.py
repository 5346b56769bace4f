"""Prefetching: batches made ahead of the training step by worker processes.

Grain's prefetching, and around it: all workers start at once, Ctrl-C reaches only the
training process, workers end together and with their parent, and a worker that is
killed ends the run with one line.
"""

import collections
import concurrent.futures
import gc
import math
import multiprocessing
import os
import re
import signal
import threading
import time
from typing import Self

import cloudpickle
import grain
import numpy as np

from dinojax import errors
from dinojax.runtime import allocator

# Likely causes of a signal that ended a worker, and the way out.
CAUSES = {
  signal.SIGKILL: "memory may have run out; fewer workers need less (config.workers, or"
  " --workers)",
  signal.SIGTERM: "somebody or a job manager ended it",
  signal.SIGBUS: "/dev/shm, which passes batches on, may be full; give the container a"
  " larger one (Docker: --shm-size), or use fewer workers",
}


class Batches:
  """Iterator of host batches, read ahead by worker processes or by one thread."""

  def __init__(self, dataset: grain.MapDataset, workers: int):
    """Starts `workers` processes, each for every workers-th batch; 0: one thread."""
    # Workers read the dataset from memory that has no name and ends with this process.
    self._sent = open(os.memfd_create("dataset"), "w+b")  # noqa: SIM115, till read
    if workers:
      cloudpickle.dump(dataset, self._sent)
      self._sent.flush()
    self._from_processes = workers > 0
    timed = _Timed(dataset, f"/proc/{os.getpid()}/fd/{self._sent.fileno()}")
    shards = [timed[i::workers] for i in range(workers)] or [timed]
    self._iterators = [_read_ahead(shard, workers) for shard in shards]
    self._turn = 0
    self._seconds = collections.deque(maxlen=4 * len(shards))
    # Processes inherit the signal mask: Ctrl-C is for this process to handle. Ignoring
    # the signal in worker_init_fn would come after seconds of imports.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
      for iterator in self._iterators:
        iterator.start_prefetch()
    finally:
      signal.pthread_sigmask(signal.SIG_SETMASK, mask)

  def __iter__(self) -> Self:
    """Returns itself."""
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    """Returns the next batch; after the last one, closes.

    Raises:
      errors.TemporaryError: a signal ended a worker.
      errors.UserError: a worker raised it.
    """
    if not self._iterators:
      raise StopIteration
    try:
      batch, seconds = next(self._iterators[self._turn])
    except StopIteration:
      self.close()
      raise
    except errors.UserError as error:
      # Frames of Grain's hold the last batch, whose shared memory would outlive Python.
      raise error.with_traceback(None) from None
    except RuntimeError as error:
      killed = _killed_worker(error)
      if killed is None:
        raise
      raise killed from error
    self._turn = (self._turn + 1) % len(self._iterators)
    if not self._turn:
      self._sent.close()  # All workers have read it.
    self._seconds.append(float(seconds))
    # Copied, since Grain's shared memory must be released before Python ends.
    return {name: np.array(value) for name, value in batch.items()}

  def rate(self) -> float:
    """Returns the batches a second that all workers can make, by the latest ones.

    They make as many if nobody makes them wait. NaN before the first batch.
    """
    if not self._seconds:
      return math.nan
    return len(self._iterators) * len(self._seconds) / sum(self._seconds)

  def close(self) -> None:
    """Ends the workers, within the time of about two batches. May be called again."""
    iterators, self._iterators = self._iterators, []
    if not iterators:
      return
    with concurrent.futures.ThreadPoolExecutor(len(iterators)) as pool:
      list(pool.map(lambda iterator: iterator.close(), iterators))
    self._sent.close()
    # Exhausted iterators hold the last batch in a reference cycle. A worker's lies in
    # shared memory, which would outlive Python, with a warning.
    iterators.clear()
    if self._from_processes:  # A second of each evaluation, of threads for nothing.
      gc.collect()


class _Timed(grain.MapDataset):
  """Elements with the seconds that each took to make.

  Pickles as the name of a file that holds its pickled parent: a process gets its
  arguments by a pipe, and if it dies before it has read more than 64 KiB of them, the
  parent would write for ever. The names of a folder's files are more than that.
  """

  def __init__(self, parent: grain.MapDataset, path: str):
    super().__init__(parent)
    self._path = path

  def __reduce__(self) -> tuple:
    return _open, (self._path,)

  def __len__(self) -> int:
    return len(self._parent)

  def __getitem__(self, index: int | slice) -> tuple:
    if isinstance(index, slice):
      return self.slice(index)
    start = time.perf_counter()
    element = self._parent[index]
    return element, np.float64(time.perf_counter() - start)


def _open(path: str) -> _Timed:
  """Unpickles a `_Timed` in a worker."""
  with open(path, "rb") as file:
    return _Timed(cloudpickle.load(file), path)


def _killed_worker(error: RuntimeError) -> errors.TemporaryError | None:
  """Returns the user's error if Grain's error says that a signal ended a worker."""
  code = re.search(r"terminated unexpectedly with exit code -(\d+)", str(error))
  if code is None or int(code[1]) not in CAUSES:
    return None
  number = signal.Signals(int(code[1]))
  return errors.TemporaryError(
    f"an input worker was ended by {number.name}: {CAUSES[number]}; the same command"
    " resumes"
  )


def _read_ahead(dataset: grain.MapDataset, workers: int) -> grain.DatasetIterator:
  """Returns an iterator fed by a process, or without workers by a thread."""
  # Buffers count batches: a worker makes one while another waits in its queue.
  ahead = 0 if workers else 1
  read_options = grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)
  processes = grain.MultiprocessingOptions(min(workers, 1), per_worker_buffer_size=1)
  prefetched = dataset.to_iter_dataset(read_options).mp_prefetch(
    processes, worker_init_fn=_start_worker
  )
  iterator = iter(prefetched)
  iterator.get_state()  # Makes what start_prefetch starts.
  return iterator


def _start_worker(worker: int, workers: int) -> None:
  """Makes a worker keep the memory that it frees, and end when its parent is killed.

  Grain's own workers would wait for ever.
  """
  del worker, workers
  allocator.keep_pages(with_accelerators=True)  # A worker uses none.

  def wait():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()
