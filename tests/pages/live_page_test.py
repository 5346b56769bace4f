"""The page of a run that trains is written again, rarely if large, and ends no run."""

import types

import recorded

from dinojax.pages import live_page


def test_a_page_is_written_with_its_files_and_named_at_the_end(tmp_path, capsys):
  recorded.write(tmp_path, [recorded.numbers(10)])
  page = live_page.LivePage(str(tmp_path))
  page.refresh()
  assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")
  page.finish()
  assert f"open {tmp_path / 'report.html'}" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_ends_no_run_and_is_reported_once(
  tmp_path, capsys
):
  recorded.write(tmp_path, [recorded.numbers(10)])
  (tmp_path / "report.html").mkdir()
  page = live_page.LivePage(str(tmp_path))
  page.refresh()
  page.refresh()
  page.finish()
  assert capsys.readouterr().err.count("is not written") == 1
  assert not list(tmp_path.glob(".*"))


def test_a_page_that_takes_long_is_written_more_rarely(tmp_path, monkeypatch):
  written, now = [], [0.0]
  clock = types.SimpleNamespace(monotonic=lambda: now[0])
  monkeypatch.setattr(live_page, "time", clock)

  def write(runs, path):
    written.append(now[0])
    now[0] += 2.0

  monkeypatch.setattr(live_page.run_page, "write", write)
  monkeypatch.setattr(live_page.run_files, "read", lambda workdir: None)
  page = live_page.LivePage(str(tmp_path))
  for _ in range(6):
    page.refresh()
    now[0] += 100.0
  page.finish()
  assert written == [0.0, 202.0, 404.0, 606.0]
