"""Compilation cache: hits are the same program, and damage costs a line at most."""

import concurrent.futures
import errno
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.runtime import compiled

KEY = "jit_f-" + "a" * 64
DAMAGE = {
  "truncated": lambda entry: entry[: len(entry) // 2],
  "empty": lambda entry: b"",
  "zeros": lambda entry: bytes(len(entry)),
  "one bit": lambda entry: entry[:-1] + bytes([entry[-1] ^ 1]),
  "random bytes": lambda entry: np.random.default_rng(0).bytes(len(entry)),
}


def entries(folder):
  return [path for path in folder.rglob("*") if path.is_file()]


def damage(folder, kind):
  (path,) = entries(folder)
  path.write_bytes(DAMAGE[kind](path.read_bytes()))


def warnings(capsys):
  return capsys.readouterr().err.count("warning: compilation cache")


@pytest.fixture
def in_jax(monkeypatch, tmp_path):
  """The cache that JAX uses, in a folder of its own."""
  monkeypatch.setattr(compiled.jax_cache, compiled.PLACE, None)
  seconds = jax.config.jax_persistent_cache_min_compile_time_secs
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  compiled.keep_programs(str(tmp_path))
  yield getattr(compiled.jax_cache, compiled.PLACE)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)


def run():
  """A program that JAX compiles, or finds on disk, at each call."""
  x = np.arange(7, dtype=np.float32)
  # A new function each time: JAX keeps what it compiled by the function.
  program = jax.jit(lambda x: jnp.sin(x).sum()).lower(x).compile()
  return np.asarray(program(x)).tobytes()


def test_a_program_is_compiled_once_and_then_read(in_jax, monkeypatch, tmp_path):
  written = []
  put = in_jax.put
  monkeypatch.setattr(in_jax, "put", lambda *a: (written.append(a), put(*a)))
  assert run() == run() == run()
  assert len(written) == len(entries(tmp_path)) == 1


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_program_is_compiled_and_replaced(in_jax, tmp_path, capsys, kind):
  result = run()
  damage(tmp_path, kind)
  capsys.readouterr()
  assert run() == result
  assert warnings(capsys) == 1
  in_jax._warned = False
  assert run() == result
  assert warnings(capsys) == 0


def test_a_folder_that_cannot_be_used_costs_one_line(tmp_path, capsys):
  (tmp_path / "file").touch()
  programs = compiled.Programs(tmp_path / "file")  # no folder can be made in it
  for _ in range(3):
    assert programs.get(KEY) is None
    programs.put(KEY, b"program")
  assert warnings(capsys) == 1


def test_a_full_disk_costs_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys):
  def fail(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  programs = compiled.Programs(tmp_path)
  monkeypatch.setattr(os, "replace", fail)
  programs.put(KEY, b"program")
  programs.put(KEY, b"program")
  assert "No space left on device" in (said := capsys.readouterr().err)
  assert said.count("\n") == 1
  assert programs.get(KEY) is None
  assert not entries(tmp_path)


def test_readers_see_whole_programs_while_others_write_and_remove_them(tmp_path):
  def work(number):
    programs = compiled.Programs(tmp_path, max_bytes=150_000)
    for i in range(60):
      key = f"{i % 3}{KEY}"
      programs.put(key, bytes([number, i]) * 30_000)
      seen = programs.get(key)
      assert seen is None or seen == seen[:2] * 30_000
    return programs._warned

  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert not any(pool.map(work, range(4)))
  assert not [path for path in entries(tmp_path) if path.suffix == compiled.PARTIAL]


def test_the_programs_that_were_used_last_stay_within_the_size(tmp_path):
  programs = compiled.Programs(tmp_path, max_bytes=3_500)
  for i in range(3):
    programs.put(str(i), bytes(1_000))
    os.utime(programs._path(str(i)), (i, i))
  assert programs.get("0") is not None  # and so 1 is the oldest
  programs.put("3", bytes(1_000))
  assert [programs.get(str(i)) is not None for i in range(4)] == [1, 0, 1, 1]
  assert sum(path.stat().st_size for path in entries(tmp_path)) <= 3_500


def test_nobody_else_may_write_programs(tmp_path):
  compiled.Programs(tmp_path / "new").put(KEY, b"program")
  (path,) = entries(tmp_path)
  assert path.stat().st_mode & 0o77 == path.parent.stat().st_mode & 0o77 == 0


@pytest.mark.parametrize(
  ("variable", "expected"),
  [
    ("/caches", "/caches/dinojax"),
    ("", "/me/.cache/dinojax"),
    ("x", "/me/.cache/dinojax"),
  ],
)
def test_the_folder_is_in_the_users_caches(monkeypatch, variable, expected):
  monkeypatch.setenv("HOME", "/me")
  monkeypatch.setenv("XDG_CACHE_HOME", variable)
  assert str(compiled.default_folder()) == expected


@pytest.mark.parametrize(
  ("folder", "own", "used"),
  [
    ("auto", None, True),
    ("auto", "/of/the/environment", False),
    ("/chosen", "/of/the/environment", True),
    ("", None, False),
    (None, None, False),
  ],
)
def test_a_cache_of_jax_from_the_environment_wins_over_the_default(
  monkeypatch, folder, own, used
):
  monkeypatch.setattr(compiled.jax_cache, compiled.PLACE, None)
  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", own)
  compiled.keep_programs(folder)
  jax.config.update("jax_compilation_cache_dir", before)
  assert (getattr(compiled.jax_cache, compiled.PLACE) is not None) == used
