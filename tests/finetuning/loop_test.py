"""A run saves, resumes bit for bit, refuses other runs, and its weights load again."""

import dataclasses
import json
import weakref

import jax
import numpy as np
import onnxruntime
import pytest
import small
from absl import flags

from dinojax import backbone, checkpoint, classifier, errors, export, sharding
from dinojax.data import label_maps, label_sets, sources
from dinojax.finetuning import feed, loop, tasks
from dinojax.weights import runs


@pytest.fixture(scope="module", autouse=True)
def parsed_flags():
  flags.FLAGS.mark_as_parsed()  # Grain's


class FewDigits:
  """The first digits of a split, for evaluations that take no time."""

  def __init__(self, split):
    self._all = sources.open_source(f"embedded:digits:{split}", field="--test")
    self.labels, self.class_names = self._all.labels[:48], self._all.class_names
    self.where, self.fingerprint = self._all.where, self._all.fingerprint

  def __len__(self):
    return 48

  def __getitem__(self, index):
    return self._all[index]


DIGITS = {
  "train": sources.open_source("embedded:digits:train", field="--train"),
  "test": FewDigits("test"),
}


def train(workdir, tune="lora", *, loaded=None, opened=DIGITS, **changes):
  """Trains for four steps, with an evaluation after each two; the accuracies."""
  mesh = sharding.make_mesh(data=1, fsdp=1, devices=jax.devices()[:1])
  recipe = small.recipe(tune, **changes)
  setup = loop.Setup(str(workdir), eval_every=2, log_every=1)
  names = opened["train"].class_names
  with jax.set_mesh(mesh):
    loaded = loaded or small.loaded()
    return loop.Run(recipe, setup, loaded, opened, names, mesh).train()


def logged(workdir):
  """Losses and accuracies by line, without rates."""
  lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  kept = "step", "loss", "train_top1", "learning_rate", "test_top1"
  return [{name: line[name] for name in kept if name in line} for line in lines]


def checksums(workdir, step=4):
  return runs.read_record(runs.find(workdir, step))["checksums"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """Workdir of a run of LoRA, and its accuracies."""
  workdir = tmp_path_factory.mktemp("whole")
  return workdir, train(workdir)


def test_a_run_that_was_cut_off_resumes_bit_for_bit(whole, tmp_path, monkeypatch):
  workdir, accuracies = whole
  following, calls = feed.Feed.__next__, []

  def cut_off(batches):
    calls.append(None)
    if len(calls) > 3:
      raise ConnectionError
    return following(batches)

  monkeypatch.setattr(feed.Feed, "__next__", cut_off)
  with pytest.raises(ConnectionError):
    train(tmp_path)
  assert runs.find(tmp_path, None).name == "2"
  monkeypatch.setattr(feed.Feed, "__next__", following)
  assert train(tmp_path) == accuracies
  assert logged(tmp_path) == logged(workdir)
  assert checksums(tmp_path) == checksums(workdir)


def test_a_finished_run_gives_its_accuracies_again(whole, monkeypatch):
  workdir, accuracies = whole
  monkeypatch.setattr(loop.Run, "_loop", None)  # nothing is left to train
  assert train(workdir) == accuracies


def test_the_last_checkpoint_and_the_best_stay(whole):
  workdir, accuracies = whole
  assert max(accuracies) == 4
  steps = {int(path.name) for path in (workdir / "checkpoints").iterdir()}
  assert steps == set(accuracies)
  written = {
    line["step"]: line["test_top1"] for line in logged(workdir) if "test_top1" in line
  }
  assert written.keys() == {2, 4}
  assert max(x["test_top1"] for x in accuracies.values()) == max(written.values())


def test_a_workdir_of_another_run_is_refused_with_the_flag(whole):
  workdir, _ = whole
  with pytest.raises(errors.UserError, match=r"--learning_rate: 0\.01 there, 0.02 now"):
    train(workdir, learning_rate=0.02)
  with pytest.raises(errors.UserError, match="--tune: lora there, all now"):
    train(workdir, "all")
  other = dataclasses.replace(small.loaded(), fingerprint="another")
  with pytest.raises(errors.UserError, match=r"--checkpoint: .* there, another now"):
    train(workdir, loaded=other)
  with pytest.raises(errors.UserError, match="--train: other contents"):
    train(workdir, opened=DIGITS | {"train": FewDigits("test")})


def test_backbone_load_gives_the_merged_backbone(whole):
  workdir, _ = whole
  loaded = backbone.load(str(workdir))
  assert loaded.sizes == {"resize": 16, "crop": 16}
  assert loaded.module.pool == "gap"
  before, after = small.params()["blocks"], loaded.params["blocks"]
  for name in ("qkv", "proj"):
    pair = before["attn"][name]["kernel"], after["attn"][name]["kernel"]
    assert abs(pair[0] - np.asarray(pair[1])).max() > 1e-4
  jax.tree.map(np.testing.assert_array_equal, before["mlp"], after["mlp"])


def test_a_run_that_trains_all_weights_does_not_keep_those_it_started_from(
  tmp_path, monkeypatch
):
  loaded, alive = small.loaded(), []
  first = weakref.ref(jax.tree.leaves(loaded.params)[0])
  mesh = sharding.make_mesh(data=1, fsdp=1, devices=jax.devices()[:1])
  setup, names = loop.Setup(str(tmp_path), 2, 1), DIGITS["train"].class_names
  run = loop.Run(small.recipe("all"), setup, loaded, DIGITS, names, mesh)
  del loaded

  def look(*_):
    alive.append(first())
    raise KeyboardInterrupt

  monkeypatch.setattr(loop.Run, "_loop", look)
  with jax.set_mesh(mesh), pytest.raises(KeyboardInterrupt):
    run.train()
  assert alive == [None]


def test_the_classifier_is_as_accurate_as_the_run_that_trained_it(whole):
  workdir, accuracies = whole
  model = classifier.load(str(workdir))
  records = [DIGITS["test"][i] for i in range(48)]
  images = np.stack(
    [np.kron(x["image"], np.ones((2, 2, 1), np.uint8)) for x in records]
  )
  names, probabilities = model.predict(images)
  assert probabilities.shape == (48, 10)
  np.testing.assert_allclose(probabilities.sum(1), 1, 1e-5)
  assert names == [str(i) for i in probabilities.argmax(1)]
  # Images are enlarged differently here: a few may differ.
  right = np.mean([int(n) == x["label"] for n, x in zip(names, records, strict=True)])
  assert right == pytest.approx(accuracies[4]["test_top1"], abs=0.1)


def test_the_table_names_the_last_and_the_best():
  numbers = {"test_top1": 0.5, "test_top5": 0.9, "val_top1": 0.4, "val_top5": 0.8}
  classes = tasks.TASKS["classes"]
  better = numbers | {"val_top1": 0.6}
  assert loop.table(
    {20: better, 40: numbers}, chosen_on="val", task=classes
  ).splitlines() == [
    "                           top-1     top-5",
    "step 40, last              50.0%     90.0%",
    "step 20, best on --val     50.0%     90.0%",
  ]
  (_, row) = loop.table({40: numbers}, chosen_on="test", task=classes).splitlines()
  assert row.startswith("step 40, last and best on --test")


class SeveralLabels(FewDigits):
  """Digits that are odd, or above 4, or both, or neither."""

  notes, class_names = (), ("high", "odd")

  def __init__(self, split):
    super().__init__(split)
    digits = self._all.labels[:48]
    self.class_names = SeveralLabels.class_names
    self.label_sets = [(0,) * (x > 4) + (1,) * (x % 2) for x in digits.tolist()]


def test_any_number_of_labels_for_each_image(tmp_path):
  names = SeveralLabels.class_names
  opened = {
    name: label_sets.LabelSets(SeveralLabels(name), names) for name in ("train", "test")
  }
  accuracies = train(tmp_path, "head", opened=opened, task="labels")
  assert set(accuracies[4]) == {"test_map", "test_f1"}
  model = classifier.load(str(tmp_path))
  found, probabilities = model.predict(np.full((2, 16, 16, 3), 99, np.uint8))
  assert probabilities.shape == (2, 2)
  for chosen, row in zip(found, probabilities, strict=True):
    assert chosen == tuple(name for name, x in zip(names, row, strict=True) if x > 0.5)


class FewScenes(FewDigits):
  """The first scenes of a split."""

  def __init__(self, split):
    self._all = sources.open_source(f"embedded:scenes:{split}", field="--test")
    self.where, self.fingerprint = self._all.where, self._all.fingerprint
    self.class_names, self.notes, self.labels = self._all.map_classes, (), None


def test_each_pixel_has_a_class_and_the_saved_network_draws_the_same_maps(tmp_path):
  opened = {name: FewScenes(name) for name in ("train", "test")}
  accuracies = train(
    tmp_path, "lora", opened=opened, task="segmentation", feature="patches", crop=24
  )
  assert set(accuracies[4]) == {"test_miou", "test_accuracy"}
  model = classifier.load(str(tmp_path))
  assert set(model.head) == {"kernel", "bias", "mean", "variance"}
  records = [opened["test"][i] for i in range(48)]
  images = np.stack([record["image"][::2, ::2] for record in records])
  maps = model.segment(images)
  truth = np.stack([record["label_map"][::2, ::2] for record in records])
  assert maps.shape == truth.shape
  known = truth != label_maps.IGNORE
  # Images are made smaller in another way here.
  right = (maps == truth)[known].mean()
  assert right == pytest.approx(accuracies[4]["test_accuracy"], abs=0.1)
  with pytest.raises(errors.UserError, match="trained with --task=segmentation; call"):
    model.predict(images)
  program = jax.export.deserialize(export.stablehlo(model.program(), 24).serialize())
  export.onnx(model.program(), 24, tmp_path / "maps.onnx")
  session = onnxruntime.InferenceSession(tmp_path / "maps.onnx")
  (stablehlo,) = program.call(images)
  (onnx,) = session.run(["label_maps"], {"images": images})
  assert (stablehlo == maps).mean() > 0.999
  assert (onnx == maps).mean() > 0.999


def test_a_run_from_before_there_were_tasks_is_one_of_classes(whole, monkeypatch):
  workdir, accuracies = whole
  read = checkpoint.Checkpoints.restore

  def without_task(saver, abstract, *, check):
    def check_old(record):
      del record["config"]["finetune"]["task"]
      check(record)

    return read(saver, abstract, check=check_old)

  monkeypatch.setattr(checkpoint.Checkpoints, "restore", without_task)
  assert train(workdir) == accuracies
