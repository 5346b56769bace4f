"""Scalars and images as TensorBoard events.

A file of its own, to be imported where events are written.
"""

import contextlib
import io
import pathlib
import sys
import time

import numpy as np
from PIL import Image


@contextlib.contextmanager
def _not_importing(*names):
  """Context in which modules that are not imported yet are as if not installed."""
  hidden = [name for name in names if name not in sys.modules]
  sys.modules.update(dict.fromkeys(hidden))
  try:
    yield
  finally:
    for name in hidden:
      del sys.modules[name]


# tensorboardX imports them where they are installed, for arguments that it gets none of
# here. PyTorch alone takes longer than all else that a command starts with.
with _not_importing("torch", "boto3", "google.cloud.storage"):
  from tensorboardX import event_file_writer, summary
  from tensorboardX.proto import event_pb2, summary_pb2


class Logger:
  """Events in a folder, written directly.

  tensorboardX's SummaryWriter has a thread for it, and when that dies on a full disk
  the run hangs.
  """

  def __init__(self, folder: pathlib.Path, *, start_step: int | None):
    """Opens a file; TensorBoard drops what others say of steps after `start_step`."""
    folder.mkdir(exist_ok=True)
    self._file = event_file_writer.EventsWriter(
      str(folder / "events"), f".{start_step}"
    )
    if start_step is not None:
      restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._write(start_step + 1, session_log=restart)

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """Takes the scalars of a step, to be written by `sync` at the latest."""
    values = [summary.scalar(name, x).value[0] for name, x in scalars.items()]
    self._write(step, summary=summary_pb2.Summary(value=values))

  def write_images(self, step: int, images: dict[str, np.ndarray]) -> None:
    """Takes images of a step, uint8 [H, W, 3] by name."""
    values = [
      summary_pb2.Summary.Value(
        tag=name,
        image=summary_pb2.Summary.Image(
          height=image.shape[0],
          width=image.shape[1],
          colorspace=3,  # RGB
          encoded_image_string=_png(image),
        ),
      )
      for name, image in images.items()
    ]
    self._write(step, summary=summary_pb2.Summary(value=values))

  def sync(self) -> None:
    """Returns when all is on disk, or in the bucket behind a mounted folder."""
    self._file.flush()

  def close(self, exit_code: int) -> None:
    """Flushes and closes; TensorBoard has no status of a run."""
    self._file.close()

  def _write(self, step: int, **what) -> None:
    event = event_pb2.Event(step=step, wall_time=time.time(), **what)
    self._file.write_event(event)


def _png(image: np.ndarray) -> bytes:
  file = io.BytesIO()
  Image.fromarray(np.ascontiguousarray(image)).save(file, "png", optimize=True)
  return file.getvalue()
