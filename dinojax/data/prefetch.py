"""Batches read ahead of the training step, by worker processes or by one thread.

Around Grain's prefetching, what a run needs at its edges: all workers start at once, a
Ctrl-C reaches only the training process, workers end together, and with their parent.
"""

import collections
import concurrent.futures
import gc
import math
import multiprocessing
import os
import signal
import threading
import time
from typing import Self

import grain
import numpy as np

from dinojax import allocator


class Batches:
  """Iterator of host batches, read ahead by worker processes or by one thread."""

  def __init__(self, dataset: grain.MapDataset, workers: int):
    """Starts `workers` processes, each for every workers-th batch; 0: one thread."""
    timed = _Timed(dataset)
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
    """Returns the next batch; after the last one, closes."""
    if not self._iterators:
      raise StopIteration
    try:
      batch, seconds = next(self._iterators[self._turn])
    except StopIteration:
      self.close()
      raise
    self._turn = (self._turn + 1) % len(self._iterators)
    self._seconds.append(float(seconds))
    # Copied, since Grain's shared memory wants to be let go before Python ends.
    return {name: np.array(value) for name, value in batch.items()}

  def rate(self) -> float:
    """Batches a second that all workers together can make, by the latest ones.

    What they could give to a reader who never lets them wait. NaN before the first one.
    """
    if not self._seconds:
      return math.nan
    return len(self._iterators) * len(self._seconds) / sum(self._seconds)

  def close(self) -> None:
    """Ends the workers, within about two batches' time. May be called again."""
    iterators, self._iterators = self._iterators, []
    if not iterators:
      return
    with concurrent.futures.ThreadPoolExecutor(len(iterators)) as pool:
      list(pool.map(lambda iterator: iterator.close(), iterators))
    # Iterators at their end hold the last batch in a cycle, and its shared memory would
    # outlive Python, with a warning.
    iterators.clear()
    gc.collect()


class _Timed(grain.MapDataset):
  """Elements with the seconds that each took to make."""

  def __init__(self, parent: grain.MapDataset):
    super().__init__(parent)

  def __len__(self) -> int:
    return len(self._parent)

  def __getitem__(self, index: int | slice) -> tuple:
    if isinstance(index, slice):
      return self.slice(index)
    start = time.perf_counter()
    element = self._parent[index]
    return element, np.float64(time.perf_counter() - start)


def _read_ahead(dataset: grain.MapDataset, workers: int) -> grain.DatasetIterator:
  """Returns an iterator fed by a process, or without workers by a thread."""
  # A buffer counts batches: a worker makes one while another waits in its queue.
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
  """Has a worker keep what memory it frees, and end when its parent was killed.

  Grain's would wait for ever.
  """
  del worker, workers
  allocator.keep_pages(with_accelerators=True)  # a worker uses none

  def wait():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()
