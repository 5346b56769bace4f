"""The command that evaluates a backbone: tables, files, cache and refusals."""

import errno
import json
import os
import pathlib
import re
import subprocess
import sys
import warnings

import children
import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from dinojax import checkpoint, errors, sharding
from dinojax import evaluate as main
from dinojax.data import scenes
from dinojax.evals import cache, logreg_segmentation, suites
from dinojax.reporting import published
from dinojax.runtime import ownership
from dinojax.weights import formats, model

ROOT = pathlib.Path(__file__).parent.parent
ARCHITECTURE = model.DEFAULTS | dict(
  patch_size=4, pos_grid=4, width=16, depth=5, heads=1, ffn="mlp", registers=0
)
CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A run with one checkpoint, step 30, of random weights."""
  folder = tmp_path_factory.mktemp("run")
  rng = np.random.default_rng(0)
  fill = lambda x: (0.1 * rng.normal(size=x.shape)).astype(np.float32)  # noqa: E731
  backbone = jax.tree.map(fill, model.shapes(ARCHITECTURE | dict(pool="gap")))
  record = {
    "step": 30,
    "data_fingerprint": "f",
    "config": {
      "backbone": ARCHITECTURE | dict(pool="gap", drop_path=0.1),
      "knn": {"resize": 16, "crop": 16},
    },
  }
  saver = checkpoint.Checkpoints(str(folder), every=1, keep_last=1, keep_best=0)
  saver.save(30, {"teacher": {"backbone": jax.device_put(backbone)}}, record)
  saver.close()
  (folder / "metrics.jsonl").write_text('{"step": 30, "loss": 5.0}\n')
  return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  """Sources train, of 12 images a class, and test, of 6; all files are of one size."""
  folder = tmp_path_factory.mktemp("images")
  for name, count in (("train", 12), ("test", 6)):
    write_images(folder / name, dict.fromkeys(CLASSES, count), seed=count)
  return {name: f"folder:{folder}/{name}" for name in ("train", "test")}


def write_images(folder, counts, seed=0):
  """Class folders of BMP files 000.bmp, ..., whose brightness tells the class."""
  rng = np.random.default_rng(seed)
  for place, (name, count) in enumerate(counts.items()):
    (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(count):
      pixels = rng.integers(80 * place, 80 * place + 60, (8, 8, 3), np.uint8)
      Image.fromarray(pixels).save(folder / name / f"{i:03}.bmp")


@pytest.fixture
def run(workdir, images):
  """The command within this process, by flags."""

  def run(**values):
    usual = dict(checkpoint=str(workdir), batch_size=24, workers=0, step=None)
    usual |= dict(tasks=["retrieval"], recall=["1"], ks=["1", "3"]) | images
    with flagsaver.flagsaver(**usual | values):
      main.main(None)

  return run


@pytest.fixture
def one_device(monkeypatch):
  """Programs compile in half the time that those of eight take, or a third."""
  mesh = sharding.make_mesh(data=1, fsdp=1, devices=jax.devices()[:1])
  monkeypatch.setattr(sharding, "make_mesh", lambda **_: mesh)


@pytest.fixture(scope="module", autouse=True)
def parsed_flags():
  flags.FLAGS.mark_as_parsed()


def metrics(workdir):
  """The lines that evaluations have added to a run's metrics."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [line for line in map(json.loads, lines) if "loss" not in line]


@pytest.fixture(scope="module")
def evaluated(workdir, images, tmp_path_factory):
  """What the command line leaves, by name, on two devices."""
  folder = tmp_path_factory.mktemp("evaluated")
  arguments = [f"--checkpoint={workdir}", "--workers=0", "--batch_size=24"]
  arguments += [f"--{name}={spec}" for name, spec in images.items()]
  arguments += ["--tasks=knn,retrieval", "--ks=3", "--recall=2", "--cache=kept"]
  arguments += ["--results=results.json", "--feature=cls+gap", "--layers=2"]
  done = subprocess.run(
    [sys.executable, "-m", "dinojax.evaluate", *arguments],
    cwd=folder,
    capture_output=True,
    text=True,
    env=children.environment(2),
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return {
    "out": done.stdout,
    "err": done.stderr,
    "saved": json.loads((folder / "results.json").read_text()),
    "kept": folder / "kept",
    "lines": metrics(workdir),
  }


@pytest.mark.process
def test_tables_go_to_stdout_and_all_else_to_stderr(workdir, evaluated):
  table = evaluated["out"].splitlines()
  assert [line.split()[0] for line in table] == ["top-1", "k-NN,", "mAP", "retrieval"]
  assert "k-NN" not in evaluated["err"]
  wanted = [
    "features of --test, 18 images: computing, to be kept in --cache=kept",
    "features of --train, 36 images: computing, to be kept in --cache=kept",
    "knn: 36 images of --train, 18 images of --test, 64 features each",
    "retrieval: 36 images of --train, 18 images of --test, 64 features each",
    f"added to {workdir}/metrics.jsonl as step 30",
  ]
  assert [line for line in evaluated["err"].splitlines() if line in wanted] == wanted


@pytest.mark.process
def test_json_and_the_runs_metrics_say_what_was_evaluated(images, evaluated):
  saved, (knn, retrieval) = evaluated["saved"], evaluated["lines"]
  about = dict(**images, resize=16, crop=16, dtype="float32", feature="cls+gap")
  about["layers"] = 2
  assert about.items() < saved.items()
  assert saved["step"] == 30 and saved["tasks"]["knn"]["temperature"] == 0.07
  results = saved["results"]
  for line in (knn, retrieval):
    assert {f"eval_{k}": x for k, x in about.items()}.items() < line.items()
    assert line["step"] == 30
  assert knn["eval_knn_top1_k3"] == results["knn_top1_k3"]
  assert knn["eval_knn_temperature"] == 0.07
  assert retrieval["eval_retrieval_map"] == results["retrieval_map"]


@pytest.mark.process
def test_cached_features_serve_the_same_weights_and_sizes_alone(
  workdir, images, evaluated, run, tmp_path, capsys
):
  def origin(checkpoint, **changes):
    layers = dict(feature="cls+gap", layers=2)
    kept = str(evaluated["kept"])
    run(checkpoint=str(checkpoint), cache=kept, **layers, **changes)
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if "features of --train" in line]
    return line.partition(": ")[2].removesuffix(f"--cache={kept}")

  # Of two devices before, of eight now.
  assert origin(workdir) == "from "
  weights = formats.read(str(workdir))
  same, other = tmp_path / "same.safetensors", tmp_path / "other.safetensors"
  formats.write(weights, str(same), "huggingface")
  # It knows the run's resize and crop.
  assert origin(same) == "from "
  assert origin(workdir, resize=20) == "computing, to be kept in "
  weights.params["backbone"]["norm"]["bias"][0] += 1
  formats.write(weights, str(other), "huggingface")
  assert origin(other) == "computing, to be kept in "
  # Names and sizes of files say nothing.
  turned = dict(train=images["test"], test=images["test"])
  assert origin(workdir, **turned) == "from "


@pytest.mark.usefixtures("one_device")
def test_overwritten_files_of_equal_size_are_evaluated_anew(run, tmp_path, capsys):
  def features(seed):
    write_images(tmp_path / "set", {"ant": 4, "bee": 4}, seed=seed)
    source = f"folder:{tmp_path}/set"
    run(train=source, test=source, cache=str(tmp_path / "kept"))
    return capsys.readouterr().err.count("computing")

  assert [features(0), features(1), features(0)] == [1, 1, 0]


@pytest.mark.usefixtures("one_device")
def test_features_that_another_process_is_making_are_not_made_twice(run, tmp_path):
  source = f"folder:{tmp_path}/set"
  write_images(tmp_path / "set", {"ant": 4, "bee": 4})
  kept = tmp_path / "kept"
  run(train=source, test=source, cache=str(kept))
  (key,) = kept.iterdir()
  key.rename(tmp_path / "away")
  with (
    ownership.owned(kept, key.name, label="another"),
    pytest.raises(
      errors.UserError, match=f"--cache={kept}, features of --.*, is in use"
    ),
  ):
    run(train=source, test=source, cache=str(kept))


@pytest.mark.usefixtures("one_device")
def test_a_cache_without_room_costs_no_result(run, tmp_path, monkeypatch, capsys):
  def fail(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(cache.ocp.Checkpointer, "save", fail)
  run(cache=str(tmp_path / "kept"))
  said = capsys.readouterr()
  assert "retrieval" in said.out
  assert said.err.count("note: the features are not kept: --cache=") == 2
  assert "No space left on device" in said.err


@pytest.mark.usefixtures("one_device")
def test_without_a_cache_features_are_computed_of_the_runs_own_kind(run, capsys):
  run(tasks=["logreg", "linear"], linear_steps=20, linear_batch=16)
  said = capsys.readouterr()
  assert "features of --test, 18 images: computing\n" in said.err
  assert "logreg: 36 images of --train, 18 images of --test, 16 features" in said.err
  assert "linear: 36 images of --train, 18 images of --test, 80 features" in said.err
  assert "step 30, heads 1, pool gap" in said.err
  assert "feature gap, layers 1" in said.err
  assert "logistic regression, C=" in said.out and "linear, cls" in said.out


@pytest.mark.usefixtures("one_device")
def test_the_linear_protocol_has_features_of_its_own_and_its_line_names_no_other(
  workdir, run
):
  run(tasks=["linear"], linear_steps=20, linear_batch=16, feature="cls", layers=2)
  line = metrics(workdir)[-1]
  assert line["eval_linear_steps"] == 20 and line["eval_linear_batch_size"] == 16
  assert "eval_feature" not in line and "eval_layers" not in line


def test_scenes_are_segmented_beside_other_tasks_and_the_runs_metrics_say_how(
  workdir, run, tmp_path, monkeypatch, capsys, one_device
):
  monkeypatch.setattr(scenes, "SCENES", {"train": 16, "test": 8})
  monkeypatch.setattr(logreg_segmentation, "STRENGTHS", (0.001, 0.1))
  sources = {name: f"embedded:scenes:{name}" for name in ("train", "test")}
  path = tmp_path / "r.json"
  sources["val"] = sources["train"]
  names = ["segmentation", "linear_segmentation"]
  few = dict(segmentation_steps=3, segmentation_batch=8, crop=24, batch_size=8)
  with pytest.raises(errors.UserError, match=r"--window=10 must .*size, 4, .*; try 8"):
    run(tasks=names, window=10, **few, **sources)
  few["window"] = 16
  run(tasks=names, results=str(path), **few, **sources)
  said = capsys.readouterr()
  assert "k-NN segmentation, 576 patches" in said.out and "background" in said.out
  assert (
    "knn_segmentation: 16 images of --train, 8 images of --test, 16 images of --val,"
    " 11 classes\n"
  ) in said.err
  assert said.err.count("remembers 576 patches of --train\n") == 1
  assert "logistic regression of 576 patches, C=" in said.out
  assert "linear segmentation, lr" in said.out and "chosen on val" in said.out
  saved, (line, other) = json.loads(path.read_text()), metrics(workdir)[-3::2]
  assert other["eval_linear_segmentation_steps"] == 3
  assert len(saved["results"]["knn_segmentation_iou"]) == 11
  wanted = dict(crop=24, window=16, knn_segmentation_k=30)
  wanted |= dict(knn_segmentation_memory=1_024_000)
  assert {f"eval_{k}": x for k, x in wanted.items()}.items() < line.items()
  assert line["eval_knn_segmentation_miou"] == saved["results"]["knn_segmentation_miou"]
  assert "eval_resize" not in line and "eval_feature" not in line


@pytest.mark.usefixtures("one_device")
def test_folders_of_images_and_masks_are_segmented_and_wrong_pairs_are_one_line_each(
  run, tmp_path, caplog, capsys
):
  rng = np.random.default_rng(0)
  for split, count in (("train", 12), ("test", 4)):
    for i in range(count):
      left = 4 * (i % 3)
      pixels = rng.integers(60, size=(20, 30, 3))
      pixels[:, left : left + 15] += 150
      mask = np.zeros((40, 60), np.uint8)  # twice as large
      mask[:, 2 * left : 2 * left + 30] = 2
      for folder, values in (("images", pixels), ("masks", mask)):
        (tmp_path / split / folder).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(values.astype(np.uint8))
        image.save(tmp_path / split / folder / f"{i}.png")
  turned = Image.fromarray(np.full((60, 40), 2, np.uint8))
  turned.save(tmp_path / "test" / "masks" / "0.png")
  (tmp_path / "train" / "masks" / "3.png").write_bytes(b"")
  pairs = {
    split: f"folder:{tmp_path}/{split}/images?masks={tmp_path}/{split}/masks"
    for split in ("train", "test")
  }
  run(tasks=["knn_segmentation"], crop=24, batch_size=8, segmentation_k=3, **pairs)
  said = capsys.readouterr()
  assert "k-NN segmentation, 396 patches" in said.out  # of 11 images
  assert "4 images of --test, 3 classes" in said.err
  skipped = [x for x in caplog.messages if x.startswith("corrupt image or label map")]
  assert [x.partition(": ")[2][len(str(tmp_path)) :] for x in skipped] == [
    "/train/images/3.png: its label map has zero bytes",
    "/test/images/0.png: its label map, 40x60 pixels, is of another shape than the"
    " upright image, 30x20",
  ]
  iou = [x.split() for x in said.out.splitlines() if x.startswith("  ")][-3:]
  assert iou[1] == ["1", "none"] and float(iou[2][1][:-1]) > 60


def test_depth_and_an_attentive_probe_are_evaluated_from_the_embedded_images(
  workdir, images, run, monkeypatch, capsys, one_device
):
  monkeypatch.setattr(scenes, "SCENES", {"train": 16, "test": 8})
  small = dict(batch_size=8, flip_prob=0.0)
  sources = {name: f"embedded:depth:{name}" for name in ("train", "test")}
  sources["val"] = sources["train"]
  run(tasks=["depth"], depth_steps=2, depth_batch=8, crop=24, **small, **sources)
  found, line = capsys.readouterr(), metrics(workdir)[-1]
  assert "depth: 16 images of --train, 8 images of --test, 16 images of" in found.err
  assert "RMSE" in found.out and "delta1" in found.out
  assert line["eval_depth_rmse"] > 0 and line["eval_depth_high"] == 10.0
  few = dict(attentive_steps=2, attentive_batch=8, val=images["test"])
  run(tasks=["attentive"], **few, **small)
  found, line = capsys.readouterr(), metrics(workdir)[-1]
  assert "18 images of --test, 18 images of --val, 3 classes\n" in found.err
  assert "attentive, lr" in found.out and "chosen on val" in found.out
  assert line["eval_attentive_flip_prob"] == 0.0 and "eval_feature" not in line


ONE = {"ant": 5}
SINGLE = {"ant": 5, "bee": 1, "cat": 5}


@pytest.mark.parametrize(
  ("counts", "changes", "message"),
  [
    (None, dict(tasks=["knn", "foo"]), "--tasks=foo must be some of knn, linear, logr"),
    (None, dict(tasks=[]), "--tasks= must be some of knn, linear, logreg, retrieval"),
    (None, dict(ks=["1", "x"]), "--ks=1,x must be numbers from 1 with commas between"),
    (None, dict(temperature=0.0), "--temperature=0.0 must be above 0"),
    (None, dict(seed=-1), "--seed=-1 must be at least 0"),
    (
      None,
      dict(tasks=["depth"]),
      "has no depth maps, which depth needs; give a source",
    ),
    (None, dict(min_area=0.0), "--min_area=0.0 must be above 0, at most 1"),
    (None, dict(flip_prob=1.5), "--flip_prob=1.5 must be within 0 and 1"),
    (
      None,
      dict(depth_min=3.0, depth_max=2.0),
      "--depth_min=3.0 must be above 0, and b",
    ),
    (None, dict(segmentation_k=0), "--segmentation_k=0 must be at least 1"),
    (None, dict(tasks=["knn", "knn_segmentation"]), "has no label maps, which knn_s"),
    (None, dict(checkpoint="/nope"), "/nope does not exist; give a run's workdir or "),
    (None, dict(layers=9), "--layers=9 must be within 1 and 5"),
    (None, dict(crop=15), "--crop=15 must be a multiple of the patch size, 4; try 16"),
    (None, dict(step=7), "has no checkpoint of step 7, only [30]"),
    (None, dict(workers=-1), "--workers=-1 must be at least 0"),
    (None, dict(train=""), "--train=SOURCE is missing, such as folder:PHOTOS"),
    (None, dict(test=str(ROOT)), f"did you mean folder:{ROOT}?"),
    (None, dict(results="/nope/r.json"), "--results=/nope/r.json cannot be written: "),
    (
      None,
      dict(tasks=["linear"], linear_batch=12),
      "--linear_batch=12 must be a multiple of 8 devices; try 16",
    ),
    (None, dict(segmentation_steps=0), "--segmentation_steps=0 must be at least 1"),
    (
      None,
      dict(tasks=["knn"], ks=["1", "37"]),
      "--ks asks for 37 neighbours, and --train has 36 labelled images; use at most 36",
    ),
    (
      SINGLE,
      dict(tasks=["knn"], shots=["1", "2"]),
      "--shots=2 asks for more images than the 1 of class 'bee' in --train",
    ),
    (
      ONE,
      dict(tasks=["logreg"]),
      "logreg needs images of two classes, and --train has",
    ),
    (SINGLE, dict(tasks=["logreg"]), "--train has one of class 'bee' (1 of 3 classes"),
    (None, dict(recall=["37"]), "--recall=37 asks for more than the 36 labelled image"),
    ({"ant": 1, "bee": 1}, {}, "retrieval finds nothing: no image of --test has anot"),
  ],
)
def test_a_mistake_is_named_before_features_are_computed(
  run, tmp_path, capsys, counts, changes, message
):
  sets = {}
  if counts:
    write_images(tmp_path, counts)
    sets = dict.fromkeys(("train", "test"), f"folder:{tmp_path}")
  with pytest.raises(errors.UserError, match=re.escape(message)):
    run(**sets | changes)
  assert "computing" not in capsys.readouterr().err


@pytest.mark.usefixtures("one_device")
def test_what_a_task_finds_is_kept_though_another_one_refuses(run, tmp_path, capsys):
  write_images(tmp_path / "set", {"ant": 6, "bee": 2})
  (tmp_path / "set" / "bee" / "000.bmp").write_bytes(b"BM")  # known by reading alone
  source, path = f"folder:{tmp_path}/set", tmp_path / "r.json"
  with pytest.raises(errors.UserError, match="--train has one of class 'bee'"):
    run(tasks=["logreg", "retrieval"], train=source, test=source, results=str(path))
  assert "mAP" in capsys.readouterr().out
  assert "retrieval_map" in json.loads(path.read_text())["results"]


@pytest.fixture
def suite(images, monkeypatch):
  """--suite=small of two sets, of which only the first is there."""
  sets = {
    "cifar10": images,
    "dtd": {"train": "tfds:dtd:train+validation", "test": "tfds:dtd:test"},
  }
  protocol = dict(tasks=["knn", "logreg"], resize=16, crop=16, temperature=0.07)
  monkeypatch.setitem(suites.SUITES, "small", suites.Suite(sets, protocol))
  return dict(suite="small", train=None, test=None)


@pytest.mark.usefixtures("one_device")
def test_a_suite_is_evaluated_beside_published_figures_by_its_protocol(
  suite, workdir, images, tmp_path, capsys
):
  path, before = tmp_path / "r.json", len(metrics(workdir))
  usual = dict(checkpoint=str(workdir), batch_size=24, workers=0, ks=["3", "1"])
  with flagsaver.flagsaver(**usual | suite, sets=["cifar10"], results=str(path)):
    main.main(None)
  saved, out = json.loads(path.read_text()), capsys.readouterr().out.splitlines()
  assert saved["sets"] == {"cifar10": images} and saved["crop"] == 16
  assert saved["tasks"]["knn"]["ks"] == [3, 1]  # a flag that is given counts
  found = saved["results"]["cifar10"]
  best = max(found["knn_top1_k1"], found["knn_top1_k3"])
  assert found["logreg_top1_low"] <= found["logreg_top1"] <= found["logreg_top1_high"]
  assert "95% interval" in out[1] and out[0] == "cifar10"
  (start,) = (i for i, line in enumerate(out) if line.startswith("cifar10 "))
  ours, interval, dino = (line.split() for line in out[start + 1 : start + 4])
  assert ours == ["ours", f"{best:.1%}", f"{found['logreg_top1']:.1%}"]
  assert interval[:2] == ["95%", "interval"] and len(interval) == 4
  assert dino[0] == "DINO" and "84.0%" in dino
  assert saved["published"]["cifar10"][0]["top1"] == {"knn": 84.0}
  lines = metrics(workdir)[before:]
  assert [line["eval_data"] for line in lines] == ["cifar10", "cifar10"]


def test_a_suite_whose_data_are_not_there_names_them_before_any_work(
  suite, run, tmp_path, monkeypatch, capsys
):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  with pytest.raises(errors.UserError) as raised:
    run(**suite, tasks=["knn"])
  text = str(raised.value)
  assert "\n" not in text and text.endswith(
    "; --sets=cifar10 evaluates the others alone"
  )
  assert text.startswith('--suite=small: train="tfds:dtd:train+validation" is not prep')
  assert 'tfds.builder("dtd", file_format="array_record").download_and_pre' in text
  assert not capsys.readouterr().out


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(sets=["mnist"]), "--sets=mnist must be some of cifar10, dtd"),
    (
      dict(train="embedded:digits"),
      "--suite=small has sources of its own; leave out --",
    ),
    (
      dict(tasks=["depth"]),
      "--tasks=depth is none that a suite does; give --suite som",
    ),
    (
      dict(suite=None, sets=["dtd"]),
      "--sets chooses data sets of a suite; give --suit",
    ),
  ],
)
def test_flags_that_do_not_go_with_a_suite_are_refused(suite, run, changes, message):
  with pytest.raises(errors.UserError, match=re.escape(message)):
    run(**suite | changes)


def test_every_suite_sets_flags_and_sources_that_there_are():
  for suite in suites.SUITES.values():
    for name, value in suite.flags.items():
      with flagsaver.flagsaver():
        flags.FLAGS.set_default(name, value)
    assert set(suite.flags["tasks"]) <= set(suites.TASKS) <= set(published.TASKS)
    for specs in suite.sets.values():
      assert list(specs) == ["train", "test"]
  known = {data for suite in suites.SUITES.values() for data in suite.sets}
  assert set(published.FIGURES) <= known


@pytest.mark.usefixtures("one_device")
def test_sets_of_which_nothing_is_readable_are_one_line_and_no_number(run, tmp_path):
  write_images(tmp_path / "set", {"ant": 3, "bee": 3})
  for path in (tmp_path / "set").glob("*/*"):
    path.write_bytes(b"")
  source, path = f"folder:{tmp_path}/set", tmp_path / "r.json"
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    with pytest.raises(errors.UserError) as raised:
      run(tasks=["knn", "retrieval"], test=source, results=str(path))
  assert str(raised.value).startswith(
    f'--test="{source}": none of its 6 images is readable and has a label'
  )
  assert not path.exists()


@pytest.mark.usefixtures("one_device")
def test_features_that_overflow_are_an_error_that_names_an_image(
  workdir, run, tmp_path, images
):
  weights = formats.read(str(workdir))
  weights.params["backbone"]["norm"]["scale"][0] = 3e38
  formats.write(weights, str(tmp_path / "large.safetensors"), "huggingface")
  with pytest.raises(errors.UserError) as raised:
    run(checkpoint=str(tmp_path / "large.safetensors"))
  assert re.search(
    r"the features of \d+ of 18 images are not finite, the first one's .*\.bmp;",
    str(raised.value),
  )


@pytest.mark.usefixtures("one_device")
def test_a_run_that_cannot_be_written_to_is_evaluated_with_a_note(
  workdir, run, tmp_path, capsys
):
  here = tmp_path / "run"
  here.mkdir()
  (here / "checkpoints").symlink_to(workdir / "checkpoints")
  (here / "metrics.jsonl").mkdir()
  run(checkpoint=str(here))
  said = capsys.readouterr()
  assert "retrieval" in said.out
  assert "note: the results are not added to the run: " in said.err
