"""Console: plain lines off a terminal, and a rate of what comes after compilation."""

import io
import sys

import jax
import pytest
import tqdm

from dinojax.reporting import console


def test_progress_off_a_terminal_is_a_few_plain_lines(monkeypatch):
  stderr = io.StringIO()
  monkeypatch.setattr(sys, "stderr", stderr)
  monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", -1)
  progress = console.Progress(total=7, start=4)
  progress.show(dict(loss=1.25, images_per_second=80, data_wait_share=0.125))
  progress.update(1)
  monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 1000)
  progress.update(1)
  progress.close()
  assert not set("\r\x1b") & set(stderr.getvalue())
  (line,) = stderr.getvalue().splitlines()
  for part in ("5/7", "loss 1.25", "80 images/s", "12%"):
    assert part in line


def test_a_bars_rate_and_eta_are_of_what_comes_after_its_first_move():
  now = 1000.0
  bar = tqdm.tqdm(total=100, initial=20, file=io.StringIO(), mininterval=0)
  bar._time = lambda: now
  bar.start_t = bar.last_print_t = now
  advance = console.advancer(bar)
  now += 60  # the compiler's time, which tells nothing
  advance(10)
  assert (bar.n, bar.format_dict["elapsed"]) == (30, 0)
  assert "<?," in str(bar)  # no ETA yet
  now += 2
  advance(10)
  assert bar.format_dict["elapsed"] == 2
  assert bar.format_dict["rate"] == pytest.approx(5)
  assert "<00:12," in str(bar)  # 60 left at 5 a second


def test_results_go_to_stdout_and_log_lines_to_stderr_on_the_first_process_alone(
  capsys, monkeypatch
):
  console.say("a line")
  console.print_result("a table")
  assert capsys.readouterr() == ("a table\n", "a line\n")
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  console.say("a line")
  console.print_result("a table")
  assert capsys.readouterr() == ("", "")
