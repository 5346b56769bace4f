"""Checkpoints: state, position in the data and config, saved and restored as one unit.

A checkpoint is the folder WORKDIR/checkpoints/STEP. It holds the state, as sharded
arrays that any mesh can read, and a record in JSON: step, data_fingerprint, config,
k-NN metrics if there are any, and a checksum of every array. Orbax writes it in the
background, from its own copy; the folder gets its name when all is written.
"""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from dinojax import checksums, errors
from dinojax.runtime import orbax_errors, retention

LOGGER = logging.getLogger(__name__)
# What every record holds.
RECORD = dict(step=int, config=dict, checksums=dict, data_fingerprint=(list, str))


class Checkpoints:
  """The checkpoints of one run. All processes make every call together."""

  def __init__(self, workdir: str, *, every: int, **kept: Any):
    """Opens WORKDIR/checkpoints; clears away what an interrupted save left there.

    Args:
      workdir: of the run; exists and can be written to.
      every: steps between checkpoints.
      **kept: which to keep, of `retention.KeepLastAndBest`.
    """
    orbax_errors.mute_orbax()
    self.directory = epath.Path(workdir).resolve() / "checkpoints"
    self._every = every
    self._writing: int | None = None
    self._policy = retention.KeepLastAndBest(**kept)
    self._last_whole: int | None = None  # newest checkpoint that is complete
    with self._failing_in_one_line():
      self._open()

  def _open(self):
    # What a kill during a save left. Orbax would clear it in a thread that outlives
    # its manager, and a second one at the same work makes both fail.
    if jax.process_index() == 0:
      os.makedirs(self.directory, exist_ok=True)
      for half_written in self.directory.glob("*.orbax-checkpoint-tmp*"):
        half_written.rmtree()
    options = ocp.CheckpointManagerOptions(
      preservation_policy=self._policy,
      # Made in the background, a folder that cannot be made blocks Orbax's threads, and
      # with them the end of the process, for minutes.
      async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    )
    self._manager = ocp.CheckpointManager(self.directory, options=options)
    self._last_whole = self._manager.latest_step()
    for step in self._manager.all_steps():
      # `restore` deals with damaged records.
      with contextlib.suppress(*orbax_errors.IO_ERRORS):
        self._policy.note(step, self._read_record(step).get("metrics"))

  def save(
    self,
    step: int,
    state: Any,
    record: dict,
    *,
    metrics: dict[str, float] | None = None,
    force: bool = False,
  ) -> bool:
    """Starts to write a checkpoint if one is due and this step has none yet.

    When it returns, the arrays of `state` are free to be donated. Returns whether it
    has started.

    Args:
      step: completed updates.
      state: tree of jax arrays.
      record: step, data_fingerprint, config; JSON.
      metrics: results of this very state, such as k-NN's "knn_top1_k10", by which
        `retention.KeepLastAndBest` ranks it.
      force: save now, whatever `every` says.

    Raises:
      UserError: this checkpoint, or the one before it, could not be written.
    """
    if not force and step % self._every:
      return False
    self.wait()
    if step in self._manager.all_steps():
      return False
    self._policy.note(step, metrics)
    present, _ = _fields(state)
    record = {**record, "metrics": metrics, "checksums": checksums.of(present)}
    self._writing = step
    with self._failing_in_one_line():
      # The CPU backend hands out its own memory here instead of a copy, yet leaves it
      # alone while somebody holds it: a donated update then writes elsewhere.
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(present), record=ocp.args.JsonSave(record)
        ),
        force=True,
      )
    return True

  def steps(self) -> list[int]:
    """The steps of all checkpoints, damaged ones among them, rising."""
    return sorted(self._manager.all_steps())

  def restore(
    self, abstract_state: Any, *, check: Callable, upto: int | None = None
  ) -> tuple[Any, dict] | None:
    """Reads the newest checkpoint that is whole, onto any mesh.

    Newer ones, which are damaged or beyond `upto`, are renamed to damaged-STEP-1 and
    ahead-STEP-1, with a warning each, so that the run can save these steps again.

    Args:
      abstract_state: tree of `jax.ShapeDtypeStruct` with the shardings to restore to.
      check: sees the record before the state is read; raises if the run is another.
      upto: the last step to consider; None: any.

    A field of the state that is None by default may be missing in the checkpoint of a
    run that had no such field; it is None in the state that is returned.

    Returns:
      (state, record), or None if there is no checkpoint.

    Raises:
      UserError: there are checkpoints, and none is readable; none is changed.
      TemporaryError: they are out of reach.
    """
    aside = {}
    for step in reversed(self.steps()):
      if upto is not None and step > upto:
        aside[step] = "ahead", "is ahead of other students'"
        continue
      try:
        state, record = self._read(step, abstract_state, check)
      except _DamagedError as reason:
        aside[step] = "damaged", f"cannot be read ({reason})"
        continue
      self._set_aside(aside, step)
      return state, record
    if aside and upto != 0:
      raise errors.UserError(
        f"none of the checkpoints {sorted(aside)} in {self.directory} can be read:"
        f" {max(aside)} {aside[max(aside)][1]}; bring back a copy, or remove them to"
        " start from step 0"
      )
    self._set_aside(aside, 0)
    return None

  def wait(self):
    """Blocks until the checkpoint being written is complete; UserError if it fails."""
    with self._failing_in_one_line():
      self._manager.wait_until_finished()
    self._last_whole = self._writing or self._last_whole

  def close(self):
    """As `wait`, and closes the folder."""
    with self._failing_in_one_line():
      self._manager.close()

  def _read_record(self, step: int) -> dict:
    """The record of a checkpoint; ValueError if it cannot be one."""
    path = self.directory / str(step) / "record"
    record = ocp.JsonCheckpointHandler().restore(path)
    if not isinstance(record, dict):
      raise ValueError("its record is no JSON object")
    for name, kind in RECORD.items():
      if not isinstance(record.get(name), kind):
        raise ValueError(f"its record has no {name}")
    if record["step"] != step:
      raise ValueError(f"its record is of step {record['step']}: a copy")
    return record

  def _read(self, step: int, abstract_state: Any, check: Callable) -> tuple[Any, dict]:
    """(state, record); raises _DamagedError on all processes if any cannot read it.

    Not by Orbax's manager, which waits for all processes, in vain if one has failed.
    """
    record = _on_all_processes(lambda: self._read_record(step))
    check(record)
    saved = {name.split(".")[0] for name in record["checksums"]}
    present, absent = _fields(abstract_state, saved)
    state = _on_all_processes(
      lambda: ocp.StandardCheckpointHandler().restore(
        self.directory / str(step) / "state", args=ocp.args.StandardRestore(present)
      )
    )
    # TensorStore notices missing and short files, not changed bytes in large ones.
    found = checksums.of(state)
    if changed := [k for k, v in found.items() if record["checksums"].get(k) != v]:
      raise _DamagedError(f"{changed[0]} is not what was saved")
    if dataclasses.is_dataclass(abstract_state):
      state = dataclasses.replace(abstract_state, **state, **absent)
    return state, record

  def _set_aside(self, aside: dict[int, tuple[str, str]], restored: int):
    """Renames checkpoints, on process 0, and logs it: (kind, reason) by step."""
    if not aside:
      return
    if jax.process_index() == 0:
      for step, (kind, reason) in aside.items():
        before = len(list(self.directory.glob(f"{kind}-{step}-*")))
        target = self.directory / f"{kind}-{step}-{before + 1}"
        (self.directory / str(step)).rename(target)
        LOGGER.warning(
          "checkpoint %d %s; resuming from %s; it is now %s",
          *(step, reason, f"checkpoint {restored}" if restored else "step 0", target),
        )
    multihost_utils.sync_global_devices("checkpoints set aside")
    self._manager.reload()

  @contextlib.contextmanager
  def _failing_in_one_line(self) -> Iterator[None]:
    try:
      yield
    except orbax_errors.IO_ERRORS as error:
      step = "" if self._writing is None else f" {self._writing}"
      self._writing = None
      failed = orbax_errors.is_one_of(error, errors.FAILED_DISK)
      raise (errors.TemporaryError if failed else errors.UserError)(
        f"cannot write checkpoint{step} to {self.directory}"
        f" ({orbax_errors.explain(error)}); the last good one is {self._last_whole};"
        " make room there, or permit writing, and restart"
      ) from error


def _fields(
  state: Any, saved: Collection[str] | None = None
) -> tuple[dict[str, Any], dict[str, None]]:
  """A state's fields by name, and those left out: None, or optional and not saved.

  A field that is None by default is optional: another run may have no such thing.

  Args:
    state: a dataclass; other trees are returned as they are.
    saved: names of the fields that a checkpoint has; None for all.
  """
  if not dataclasses.is_dataclass(state):
    return state, {}
  present, absent = {}, {}
  for field in dataclasses.fields(state):
    value = getattr(state, field.name)
    lacks = field.default is None and saved is not None and field.name not in saved
    if value is None or lacks:
      absent[field.name] = None
    else:
      present[field.name] = value
  return present, absent


class _DamagedError(Exception):
  """A checkpoint cannot be read."""


def _on_all_processes(read: Callable[[], Any]) -> Any:
  """Returns read(); raises _DamagedError everywhere if it fails anywhere.

  TemporaryError, which ends all processes, if the file system is out of reach.
  """
  reason = None
  try:
    value = read()
  except Exception as error:  # Damage shows as anything: KeyError, JSONDecodeError ...
    reason = orbax_errors.explain(error)
    if orbax_errors.is_one_of(error, errors.OUT_OF_REACH):
      raise errors.TemporaryError(
        f"the checkpoints are out of reach ({reason}); when they are back, restart the"
        " same command"
      ) from error
  if not np.all(multihost_utils.process_allgather(np.array(reason is None))):
    raise _DamagedError(reason or "another process cannot read it")
  return value
