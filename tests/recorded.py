"""Workdirs as runs leave them: metrics, events, config, checkpoints."""

import json
import math
import pathlib

import numpy as np

START = 1_790_000_000.0  # seconds since 1970
K = 256  # prototypes
NOTHING_LEARNT = 1.5 * math.log(K)


def config(**changes):
  """The fields of a config that a page reads."""
  found = {
    "workdir": "runs/x",
    "total_steps": 1_000,
    "alarm_window": 100,
    "hang_minutes": 30.0,
    "data": {"batch_size": 64, "sources": ["folder:photos"]},
    "heads": {"dino": {"prototypes": K}},
    "schedules": {"learning_rate": {"peak": 0.001, "warmup_steps": 100}},
  }
  return {**found, **changes}


def numbers(step, **changes):
  """A line of metrics at a step of a healthy run, which takes a second a step."""
  dino = 2 + 3.5 * math.exp(-step / 200)
  line = {
    "loss": 1.5 * dino,
    "loss_dino": dino,
    "loss_ibot": dino / 2,
    "loss_koleo": 0.5 - step / 2_000,
    "teacher_entropy": 4.0,
    "grad_norm_backbone": 1.5,
    "learning_rate": 0.001,
    "images_per_second": 64.0,
    "data_wait_share": 0.01,
    "time": START + step,
  }
  return {"step": step, **line, **changes}


def started(step=0, after=0.0, **changes):
  """The event of a start, so many seconds after the first."""
  event = {
    "time": START + after,
    "event": "start",
    "step": step,
    "total_steps": 1_000,
    "nothing_learnt": NOTHING_LEARNT,
    "parameters": {"backbone": 1_234_567, "dino_head": 10_000},
    "device": "TPU v5e",
    "mesh": {"data": 2, "fsdp": 4},
    "processes": 2,
    "evaluation_images": {"train": 2_000, "test": 1_250},
  }
  return {**event, **changes}


def event(kind, step, **what):
  """An event at a step of a run that takes a second a step."""
  return {"time": START + step, "event": kind, "step": step, **what}


def write(
  workdir: pathlib.Path, lines, *, events=(), settings=None, checkpoints=()
) -> pathlib.Path:
  """Writes a workdir; settings: the config, {} for that of `config`, None: no file."""
  workdir.mkdir(parents=True, exist_ok=True)
  for name, rows in (("metrics.jsonl", lines), ("events.jsonl", events)):
    if rows:
      (workdir / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
  if settings is not None:
    (workdir / "config.json").write_text(json.dumps(config(**settings)))
  for step in checkpoints:
    (workdir / "checkpoints" / str(step)).mkdir(parents=True)
  return workdir


def write_long(workdir: pathlib.Path, count: int) -> pathlib.Path:
  """Writes a workdir of so many logged steps, every 50th, of a second each."""
  write(workdir, [], events=[started()], settings={"total_steps": 50 * count})
  names = [name for name in numbers(1) if name not in ("step", "time")]
  names += [f"grad_norm_{i}" for i in range(3)] + ["weight_decay", "teacher_temp"]
  noise = np.random.default_rng(0).lognormal(size=(997, len(names))).tolist()
  rows = [json.dumps(dict(zip(names, row, strict=True)))[1:] for row in noise]
  with (workdir / "metrics.jsonl").open("w") as file:
    for i in range(count):
      start = f'{{"step": {50 * (i + 1)}, "time": {START + i}, '
      file.write(f"{start}{rows[i % len(rows)]}\n")
  return workdir
