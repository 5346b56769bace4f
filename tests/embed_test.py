"""Features of every image, once and in order, whatever happens on the way."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import warnings

import children
import jax
import numpy as np
import pandas
import polars
import pyarrow.parquet
import pytest
import zarr
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from dinojax import backbone, embed, errors
from dinojax.data import eval_batches, sources
from dinojax.runtime import ownership
from dinojax.weights import formats, model

ROOT = pathlib.Path(__file__).parent.parent
ARCHITECTURE = model.DEFAULTS | dict(
  **dict(patch_size=4, pos_grid=4, width=16, depth=3, heads=2),
  **dict(ffn="mlp", registers=0, pool="gap"),
)
DIGITS = "embedded:digits:test"
ENDINGS = ("parquet", "npy", "zarr")
PARTS = 8  # of the 450 digits, with 64 images a batch
# The command line, which waits before it writes its third part.
PAUSED = """
import sys
from dinojax import embed, feature_files
from dinojax.commands import cli
write = feature_files.Parquet.write
def wait_and_write(self, k, part):
  if k == 2:
    print("paused", flush=True)
    sys.stdin.read()
  write(self, k, part)
feature_files.Parquet.write = wait_and_write
cli.run(embed.main, on_interrupt="ended; the same command resumes", config=False)
"""


@pytest.fixture(scope="module", autouse=True)
def parsed_flags():
  flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  return write_weights(tmp_path_factory.mktemp("weights") / "a.safetensors", seed=0)


def write_weights(path, seed):
  rng = np.random.default_rng(seed)
  tree = jax.tree.map(
    lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype), model.shapes(ARCHITECTURE)
  )
  formats.write(
    model.Weights(ARCHITECTURE, {"backbone": tree}), str(path), "huggingface"
  )
  return path


@pytest.fixture(scope="module")
def digits(weights, tmp_path_factory):
  """Folder of the digits' features in every format, with patches."""
  folder = tmp_path_factory.mktemp("digits")
  for ending in ENDINGS:
    run(weights, folder / f"features.{ending}", patches=True)
  return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  """400 images of two classes in a folder; 30 is damaged, 390 a dangling link."""
  folder = tmp_path_factory.mktemp("images") / "images"
  rng = np.random.default_rng(0)
  for i in range(400):
    path = folder / ("cat" if i < 150 else "dog") / f"{i:03}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(path)
  (folder / "cat" / "030.png").write_bytes(b"no image")
  (folder / "dog" / "390.png").unlink()
  (folder / "dog" / "390.png").symlink_to(folder / "nowhere.png")
  return folder


@pytest.fixture(scope="module")
def straight(weights, images, tmp_path_factory):
  """Columns of those images' features, by a run without interruption."""
  out = tmp_path_factory.mktemp("straight") / "features.npy"
  run(weights, out, images=f"folder:{images}")
  return read(out)


@pytest.fixture
def start(tmp_path):
  """Starts the command line in a process, with a worker; ends it with the test."""
  started = []

  def start(weights, out, *, devices=8, **changes):
    values = arguments(weights, out, **{"workers": 1, **changes})
    command = [sys.executable, "-m", "dinojax.embed"]
    command += [f"--{name}={value}" for name, value in values.items()]
    log = tmp_path / f"log-{len(started)}"
    with log.open("w") as file:
      process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=children.environment(devices),
        stdout=file,
        stderr=file,
      )
    process.log = log
    started.append(process)
    return process

  yield start
  for process in started:
    process.kill()
    process.wait()


def output(process):
  """What a process has printed so far."""
  return process.log.read_text()


def arguments(weights, out, **changes):
  return dict(checkpoint=weights, images=DIGITS, out=out, batch_size=64) | changes


def run(weights, out, **changes):
  """The command within this process, without workers."""
  values = arguments(weights, out, workers=0, **changes)
  texts = {
    name: str(x) if isinstance(x, os.PathLike) else x for name, x in values.items()
  }
  handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
  try:
    with flagsaver.flagsaver(**texts):
      embed.main(None)
  finally:
    for number, handler in handlers.items():
      signal.signal(number, handler)


def read(out):
  """Columns of what was written, each by the reader its users would take."""
  if out.suffix == ".parquet":
    frame = pandas.read_parquet(out)
    columns = {name: frame[name].to_numpy() for name in frame if name != "label"}
    columns["label"] = frame["label"].fillna(-1).to_numpy()
    for name in {"feature", "patches"} & set(frame):
      columns[name] = np.stack(columns[name])
    if "patches" in frame:
      said = pyarrow.parquet.read_schema(next(out.iterdir())).field("patches").metadata
      shape = json.loads(said[b"shape"])
      columns["patches"] = columns["patches"].reshape(-1, *shape)
    return columns
  if out.suffix == ".npy":
    frame = pandas.read_csv(out.with_suffix(".csv"))
    columns = {name: frame[name].to_numpy() for name in frame}
    columns["label"] = frame["label"].fillna(-1).to_numpy()
    columns["feature"] = np.load(out, mmap_mode="r")
    if out.with_suffix(".patches.npy").exists():
      columns["patches"] = np.load(out.with_suffix(".patches.npy"), mmap_mode="r")
    return columns
  group = zarr.open_group(out, mode="r")
  return {name: array[:] for name, array in group.arrays()}


def assert_same(found, wanted):
  assert found.keys() == wanted.keys()
  for name in wanted:
    np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


@pytest.mark.parametrize("ending", ENDINGS)
def test_ordinary_readers_find_what_the_backbone_itself_says(weights, digits, ending):
  with warnings.catch_warnings(action="error"):
    found = read(digits / f"features.{ending}")
  batch = digit_images(resize=18, crop=16)
  seen = backbone.load(str(weights))(batch["image"])
  assert found["index"].tolist() == list(range(450))
  assert found["name"].tolist() == [f"digits:test#{i}" for i in range(450)]
  assert found["label"].tolist() == batch["label"].tolist()
  assert found["valid"].all()
  assert found["feature"].dtype == found["patches"].dtype == np.float32
  np.testing.assert_allclose(found["feature"], seen.image, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(found["patches"], seen.patches, rtol=1e-4, atol=1e-5)


def digit_images(**transform):
  """All test digits, as one batch."""
  source = sources.open_source(DIGITS, field="source")
  (batch,) = eval_batches.open_batches(
    source, batch_size=450, rows=range(450), workers=0, **transform
  )
  return batch


def test_polars_reads_a_folder_of_parts_in_order(digits):
  out = digits / "features.parquet"
  assert len(list(out.iterdir())) == PARTS
  assert polars.read_parquet(out)["index"].to_list() == list(range(450))


def test_feature_layers_and_crop_are_those_asked_for(weights, tmp_path):
  out = tmp_path / "features.npy"
  run(weights, out, feature="cls+gap", layers=2, resize=24, crop=20)
  net = backbone.load(str(weights))
  batch = digit_images(resize=24, crop=20)
  columns = backbone.columns("cls+gap", 2)
  wanted = backbone.image_columns(net.module, net.params, batch["image"], columns)
  np.testing.assert_allclose(np.load(out), wanted, rtol=1e-4, atol=1e-5)


def test_unreadable_images_keep_their_rows(weights, images, tmp_path, caplog):
  out = tmp_path / "features.parquet"
  run(weights, out, images=f"folder:{images}")
  found = read(out)
  assert found["name"].tolist() == sorted(map(str, images.glob("*/*")))
  assert np.flatnonzero(~found["valid"]).tolist() == [30, 390]
  bad = np.isnan(found["feature"])
  assert bad[~found["valid"]].all() and not bad[found["valid"]].any()
  assert found["label"].tolist() == [int(i >= 150) for i in range(400)]
  for i in (30, 390):
    assert caplog.text.count(f"its features are NaN: {found['name'][i]}: ") == 1


def test_the_limit_of_pixels_is_named_and_can_be_raised(weights, tmp_path, caplog):
  for i, side in enumerate((8, 9)):
    Image.new("RGB", (side, side), "red").save(tmp_path / f"{i}.png")
  for limit, valid in ((80, [True, False]), (81, [True, True])):
    out = tmp_path / f"{limit}.parquet"
    run(weights, out, images=f"folder:{tmp_path}", max_pixels=limit)
    assert read(out)["valid"].tolist() == valid
  assert caplog.text.count("more than the limit of max_pixels=80; raise it") == 1


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_after_its_end_by_a_signal_the_same_command_completes_the_same_rows(
  weights, images, straight, tmp_path, capsys, number
):
  out = tmp_path / "features.parquet"
  values = arguments(weights, out, images=f"folder:{images}", workers=1)
  process = subprocess.Popen(
    [sys.executable, "-c", PAUSED, *(f"--{k}={x}" for k, x in values.items())],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    assert process.stdout.readline() == "paused\n", process.stderr.read()
    workers = children.of(process.pid)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
  finally:
    process.kill()
  ended = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 128 + signal.SIGTERM}
  assert process.returncode == ended[number], said
  assert ("the same command resumes" in said) == (number == signal.SIGTERM)
  assert "Traceback" not in said
  children.wait_until_gone(workers)
  before = written(out)
  assert len(before) == 2 and not complete(out)
  run(weights, out, images=f"folder:{images}")
  assert "resumes: 2 of 7 parts are there" in capsys.readouterr().err
  assert complete(out)
  assert before.items() < written(out).items(), "no part is written twice"
  assert_same(read(out), straight)


def complete(out):
  """What the file beside an output says of it."""
  return json.loads(out.with_name(f"{out.name}.json").read_text())["complete"]


def written(parts):
  """Parts with the time when they were written."""
  return {path.name: path.stat().st_mtime_ns for path in parts.glob("*")}


@pytest.mark.parametrize("ending", ENDINGS)
def test_processes_that_stay_apart_write_what_one_writes(
  weights, digits, tmp_path, capsys, ending
):
  out = tmp_path / f"features.{ending}"
  said = []
  for i in (1, 0):
    run(weights, out, patches=True, num_processes=2, process_id=i)
    said.append(capsys.readouterr().err.splitlines()[-1])
    assert complete(out) == (i == 0)
  assert said[0] == f"4 parts of {out} are left to other processes"
  assert said[1] == f"done; {out} holds 450 rows"
  found, wanted = read(out), read(digits / f"features.{ending}")
  assert_same(found, wanted)
  # Nothing but the output is left.
  names = {out.name, f"{out.name}.json"}
  more = {"features.csv", "features.patches.npy"} if ending == "npy" else set()
  assert {path.name for path in tmp_path.iterdir()} == names | more


@pytest.mark.process
def test_joined_processes_write_what_one_writes(weights, digits, tmp_path, start):
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    address = f"localhost:{probe.getsockname()[1]}"
  out = tmp_path / "features.npy"
  joint = dict(patches=True, coordinator=address, num_processes=2, devices=1)
  pair = [start(weights, out, **joint, process_id=i, workers=1 - i) for i in range(2)]
  for process in pair:
    assert process.wait(300) == 0, output(process)
    assert "leaked" not in output(process)
  found, wanted = read(out), read(digits / "features.npy")
  for name in wanted.keys() - {"feature", "patches"}:
    assert found[name].tolist() == wanted[name].tolist()
  for name in ("feature", "patches"):  # eight devices add up in another order
    np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=1e-5)


def test_a_run_resumes_with_another_batch_size(weights, digits, tmp_path):
  out = tmp_path / "features.parquet"
  run(weights, out, patches=True, num_processes=2, process_id=1)
  run(weights, out, patches=True, batch_size=48)  # divides no part
  found, wanted = read(out), read(digits / "features.parquet")
  assert found["index"].tolist() == list(range(450))
  np.testing.assert_allclose(found["feature"], wanted["feature"], rtol=1e-4, atol=1e-5)


def test_another_run_than_the_one_begun_is_refused_by_name(weights, digits, tmp_path):
  out = digits / "features.parquet"
  other = write_weights(tmp_path / "b.safetensors", seed=1)
  said = refusal(other, out, patches=True)
  assert said == f"--checkpoint: {weights} then, {other} now"
  said = refusal(weights, out, crop=12, resize=18)
  assert said == "--crop: 16 then, 12 now; --patches: True then, False now"
  said = refusal(weights, out, patches=True, images="embedded:digits:train")
  assert said == (
    f"--images: {DIGITS} then, embedded:digits:train now; rows: 450 then, 1347 now"
  )
  said = refusal(weights, out, patches=True, pool="cls", layers=2)
  assert said == (
    "--pool: gap then, cls now; --feature: gap then, cls now; --layers: 1 then, 2 now"
  )


def test_what_has_changed_under_the_same_name_is_said(weights, images, tmp_path):
  out, mine = tmp_path / "features.npy", tmp_path / "mine.safetensors"
  mine.write_bytes(weights.read_bytes())
  few = tmp_path / "few"
  shutil.copytree(images / "cat", few)
  run(mine, out, images=f"folder:{few}")
  (few / "000.png").write_bytes((few / "001.png").read_bytes() + b"!")
  os.replace(write_weights(tmp_path / "other.safetensors", seed=1), mine)
  assert refusal(mine, out, images=f"folder:{few}") == (
    f"--checkpoint={mine} has changed: other values;"
    f" --images=folder:{few} has changed: other contents"
  )


def test_images_overwritten_by_others_of_equal_size_are_refused(weights, tmp_path):
  out, path = tmp_path / "features.npy", tmp_path / "set" / "a.bmp"
  path.parent.mkdir()
  for value, name in enumerate(("a", "b")):
    Image.new("RGB", (9, 9), (value, 0, 0)).save(path.with_name(f"{name}.bmp"))
  source = f"folder:{path.parent}"
  run(weights, out, images=source)
  stamp = path.stat()
  Image.new("RGB", (9, 9), (99, 0, 0)).save(path)
  os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
  wanted = f"--images={source} has changed: other contents"
  assert refusal(weights, out, images=source) == wanted


def test_all_files_of_an_output_are_named_and_none_is_left_to_another(
  weights, digits, tmp_path
):
  out = tmp_path / "features.npy"
  run(weights, out, patches=True)
  with pytest.raises(errors.UserError) as raised:
    run(weights, out)
  files = [
    tmp_path / f"features.{x}" for x in ("npy", "patches.npy", "csv", "npy.json")
  ]
  assert str(raised.value).endswith(f"or remove {' and '.join(map(str, files))}")
  for path in (files[0], files[3]):  # not all of them
    path.unlink()
  with pytest.raises(errors.UserError) as raised:
    run(weights, out)
  assert str(raised.value).startswith(
    f"{files[1]} and {files[2]} exist without features.npy.json,"
  )


def test_parts_of_an_output_whose_manifest_is_gone_are_not_taken(weights, tmp_path):
  out = tmp_path / "features.npy"
  run(weights, out, num_processes=2, process_id=1)
  (tmp_path / "features.npy.json").unlink()
  with pytest.raises(errors.UserError, match=r"features\.npy\.parts exists without"):
    run(weights, out, images="embedded:digits:train")


def test_one_process_at_a_time_writes_each_share_of_an_output(weights, tmp_path):
  out = tmp_path / "features.npy"
  with ownership.owned(tmp_path, out.name, label="another", share=(0, 2)):
    for share in ({}, dict(num_processes=2, process_id=0)):
      with pytest.raises(errors.UserError, match=f"--out={out} is in use by process"):
        run(weights, out, **share)
    run(weights, out, num_processes=2, process_id=1)


def test_rows_whose_features_overflow_are_not_valid(weights, tmp_path, caplog):
  large, images = formats.read(str(weights)), digit_images(resize=18, crop=16)["image"]
  for scale in np.geomspace(1e36, 3e38, 40, dtype=np.float32):
    large.params["backbone"]["norm"]["scale"][0] = scale
    finite = np.isfinite(backbone.of_weights(large)(images).cls).all(1)
    if not finite.all():
      break
  path = tmp_path / "large.safetensors"
  formats.write(large, str(path), "huggingface")
  out = tmp_path / "features.npy"
  run(path, out, feature="cls")
  table = pandas.read_csv(tmp_path / "features.csv")
  found = np.load(out)
  assert 0 < table["valid"].sum() < len(table)  # some overflow, others do not
  assert np.isfinite(found[table["valid"]]).all()
  assert np.isnan(found[~table["valid"]]).all()
  first = table["name"][np.flatnonzero(~table["valid"])[0]]
  assert f"row not valid, its features are NaN: {first}: they are not" in caplog.text


def refusal(weights, out, **changes):
  """Why an output that was begun with other settings is refused."""
  with pytest.raises(errors.UserError) as raised:
    run(weights, out, **changes)
  said = re.fullmatch(
    rf"--out={out} was (?:made|begun) with other settings \((.*)\); choose .*",
    str(raised.value),
  )
  return said[1]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_complete_output_is_left_alone(weights, digits, capsys, ending):
  before = {path: path.stat().st_mtime_ns for path in digits.rglob("*.*")}
  run(weights, digits / f"features.{ending}", patches=True)
  assert {path: path.stat().st_mtime_ns for path in digits.rglob("*.*")} == before
  assert "nothing was missing" in capsys.readouterr().err
  assert complete(digits / f"features.{ending}")


def test_a_part_that_is_removed_makes_its_output_incomplete(weights, digits, tmp_path):
  out = tmp_path / "features.parquet"
  shutil.copytree(digits / "features.parquet", out)
  shutil.copy(digits / "features.parquet.json", tmp_path)
  (out / "part-000001.parquet").unlink()
  run(weights, out, patches=True, num_processes=2, process_id=0)  # has the other ones
  assert not complete(out)
  run(weights, out, patches=True)
  assert complete(out)


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"out": "features.csv"}, "--out=features.csv must end in .parquet, .npy, .zarr"),
    ({"out": None}, "--out=None must end in"),
    ({"images": None}, "--images=SOURCE is missing"),
    ({"weights": None}, "--checkpoint=WEIGHTS is missing"),
    ({"process_id": 2, "num_processes": 2}, "--process_id=2 must be"),
  ],
)
def test_what_is_missing_or_wrong_is_named(weights, tmp_path, changes, said):
  with pytest.raises(errors.UserError, match=said):
    run(**{"weights": weights, "out": tmp_path / "f.npy"} | changes)


def test_help_shows_the_command_and_its_flags():
  assert "--out=features.parquet" in embed.__doc__
  shown = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(embed.__name__)}
  assert shown > {"checkpoint", "images", "out", "patches", "crop", "num_processes"}
