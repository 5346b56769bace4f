"""A process for local.py to run that does as it is told, instead of training."""

import argparse
import os
import signal
import subprocess
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument("--say", default="", help="on standard output")
parser.add_argument("--note", default="", help="on standard error")
parser.add_argument("--status", type=int, default=0)
parser.add_argument("--only", type=int, help="does so; the others wait")
parser.add_argument("--stubborn", action="store_true", help="ignores SIGTERM")
parser.add_argument("--leave", action="store_true", help="a process of its own behind")
parser.add_argument("--coordinator")
parser.add_argument("--num_processes", type=int)
parser.add_argument("--process_id", type=int)
options = parser.parse_args()

signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
if options.stubborn:
  signal.signal(signal.SIGTERM, lambda *_: print("no", flush=True))
devices = os.environ.get("JAX_NUM_CPU_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES"))
print(f"pid {os.getpid()} of {options.num_processes}, devices {devices}", flush=True)
if options.leave:
  print(f"pid {subprocess.Popen(['sleep', '1000']).pid}", flush=True)
if options.only not in (None, options.process_id):
  while True:
    time.sleep(1000)
for text, stream in ((options.say, sys.stdout), (options.note, sys.stderr)):
  text = text.replace("PROCESS", str(options.process_id))
  print(text.encode().decode("unicode_escape"), end="", file=stream, flush=True)
sys.exit(options.status)
