"""A worker process of Beam's local runner, which ends with the process that started it.

`python -m dinojax.curation.worker PARENT`, where PARENT is that process's id.
"""

import logging
import os
import signal
import sys
import threading
import time

import psutil

POLL = 0.5  # seconds between two looks whether the parent is there


def main() -> None:
  """Runs tasks until the runner has no more."""
  threading.Thread(target=_die_with, args=[int(sys.argv.pop())], daemon=True).start()
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it
  # The parent reports a task's error; Beam would print it here a second time.
  logging.disable(logging.CRITICAL)
  sys.stderr = open(os.devnull, "w")  # noqa: SIM115, for as long as the process lives
  from apache_beam.runners.worker import sdk_worker_main

  sdk_worker_main.main(sys.argv)


def _die_with(parent: int) -> None:
  """Ends this process when its parent is gone: Beam's would outlive it."""
  while psutil.pid_exists(parent):
    time.sleep(POLL)
  os._exit(1)


if __name__ == "__main__":
  main()
