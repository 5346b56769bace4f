"""Page of a run that trains, written with each checkpoint; it never ends the run."""

import pathlib
import time

from dinojax.pages import run_files, run_page
from dinojax.reporting import console

SHARE = 0.01  # of the time, at most, that refreshing may take


class LivePage:
  """WORKDIR/report.html, for a `run_log.Log` to refresh."""

  def __init__(self, workdir: str):
    """Writes nothing yet."""
    self._workdir = pathlib.Path(workdir)
    self._path = self._workdir / run_page.NAME
    self._took, self._last, self._failed = 0.0, time.monotonic(), False

  def refresh(self) -> None:
    """Writes the page, unless that would take more than SHARE of the time."""
    start = time.monotonic()
    if self._took > SHARE * (start - self._last):
      return
    try:
      run_page.write([run_files.read(self._workdir)], self._path)
    except Exception as error:  # a page is worth no run
      if not self._failed:
        reason = " ".join(str(error).split())[:300]
        console.say(
          f"warning: {self._path} is not written ({type(error).__name__}: {reason})"
        )
      self._failed = True
    else:
      self._failed = False
    self._last = time.monotonic()
    self._took = self._last - start

  def finish(self) -> None:
    """Writes the page a last time, and names it."""
    self._took = 0.0
    self.refresh()
    if not self._failed:
      console.say(f"curves and events: open {self._path} in a browser")
