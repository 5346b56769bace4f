"""k-NN agrees with brute force in float64, on any mesh."""

import pathlib
import re
import socket
import subprocess
import sys

import children
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from dinojax import errors
from dinojax.data import bad_records
from dinojax.evals import features, knn
from experiments import quickstart

KS = (1, 5, 20)


def mesh_of(data, fsdp):
  devices = np.array(jax.devices()[: data * fsdp])
  return Mesh(devices.reshape(data, fsdp), ("data", "fsdp"))


def bank_of(mesh, x, labels, batch_size=16):
  """Rows in batches, the last one padded with nonsense of label -1."""
  steps = -(-len(x) // batch_size)
  padding = steps * batch_size - len(x)
  x = np.concatenate([x, np.full((padding, x.shape[1]), 1e3)]).astype(np.float32)
  labels = np.concatenate([labels, np.full(padding, -1)]).astype(np.int32)
  where = NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp")))
  return features.Bank(
    features=jax.device_put(x.reshape(steps, batch_size, -1), where),
    labels=jax.device_put(labels.reshape(steps, batch_size), where),
  )


def oracle(x, labels, queries, wanted, *, num_classes, ks, temperature):
  """Method.md section 9 in float64, one query at a time."""
  x, labels = x[labels >= 0].astype(np.float64), labels[labels >= 0]
  queries, wanted = queries[wanted >= 0].astype(np.float64), wanted[wanted >= 0]
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  queries /= np.linalg.norm(queries, axis=1, keepdims=True)
  hits = {f"knn_top{top}_k{k}": [] for top in (1, 5) for k in ks}
  for query, label in zip(queries, wanted, strict=True):
    similarity = x @ query
    nearest = np.argsort(-similarity, kind="stable")[: max(ks)]
    weights = np.exp(similarity[nearest] / temperature)
    weights /= weights.sum()
    for k in ks:
      votes = np.zeros(num_classes)
      np.add.at(votes, labels[nearest[:k]], weights[:k])
      ranked = [c for c in np.argsort(-votes, kind="stable") if votes[c] > 0]
      for top in (1, 5):
        hits[f"knn_top{top}_k{k}"].append(label in ranked[:top])
  return {name: np.mean(values) for name, values in hits.items()}


def clusters(rng, count, num_classes=7, width=12):
  centres = np.random.default_rng(1).normal(size=(num_classes, width))
  labels = rng.integers(num_classes, size=count)
  return centres[labels] + 1.2 * rng.normal(size=(count, width)), labels


def test_accuracy_equals_brute_force_in_float64():  # on one device: few_shot_test.py
  rng = np.random.default_rng(0)
  x, labels = clusters(rng, 203)
  queries, wanted = clusters(rng, 61)
  labels[[3, 50]] = -1  # unreadable records in the midst
  wanted[[0, 20]] = -1
  settings = dict(num_classes=7, ks=KS, temperature=0.07)
  mesh = mesh_of(2, 4)
  result = knn.knn(
    bank_of(mesh, x, labels), bank_of(mesh, queries, wanted), mesh=mesh, **settings
  )
  wanted = oracle(x, labels, queries, wanted, **settings)
  assert result == pytest.approx(wanted, abs=1e-6)
  assert 0.3 < wanted["knn_top1_k5"] < 0.9  # a task that can be got wrong


def few(x, labels, queries, wanted, *, ks=(1, 3), temperature=0.07):
  """k-NN of a few rows, always of the same shapes: one compilation for all tests."""
  mesh = mesh_of(1, 1)
  banks = []
  for rows, own in ((x, labels), (queries, wanted)):
    padded, none = np.zeros((80, 8)), np.full(80, -1)
    padded[: len(rows), : rows.shape[1]], none[: len(rows)] = rows, own
    banks.append(bank_of(mesh, padded, none))
  return knn.knn(*banks, num_classes=8, ks=ks, temperature=temperature, mesh=mesh)


def test_a_vote_is_softmax_of_similarity_over_temperature_by_hand():
  # Cosines to the query (1, 0): 1.0 of class 0; 0.8 and 0.8 of class 1.
  x = np.array([[2.0, 0.0], [4.0, 3.0], [4.0, -3.0]])
  labels, query = np.array([0, 1, 1]), np.array([[5.0, 0.0]])
  for temperature, winner in ((0.2, 0), (1.0, 1)):  # e = 2.7 > 2; e^0.2 = 1.2 < 2
    for wanted in (0, 1):
      result = few(x, labels, query, np.array([wanted]), temperature=temperature)
      assert result["knn_top1_k3"] == (wanted == winner)
      assert result["knn_top1_k1"] == (wanted == 0)
      assert result["knn_top5_k3"] == 1


def test_a_class_without_votes_is_no_answer_even_among_five():
  x = np.eye(3)
  result = few(x, np.array([0, 0, 0]), x[:2], np.array([1, 0]))
  assert set(result.values()) == {0.5}


def test_a_perfect_embedding_scores_one_and_its_scale_does_not_matter():
  labels = np.tile(np.arange(8), 10)
  x = np.eye(8)[labels] * np.linspace(0.01, 100, 80)[:, None]
  assert set(few(x, labels, x, labels).values()) == {1.0}


def test_more_neighbours_than_labelled_rows_is_an_error_that_says_how_many_there_are():
  x, labels = np.eye(4), np.array([0, 1, -1, 2])
  assert few(x, labels, x, labels)
  with pytest.raises(errors.UserError) as raised:
    few(x, labels, x, labels, ks=(4, 1))
  assert str(raised.value) == (
    "config.knn.ks asks for 4 neighbours, and config.knn.train has 3 labelled images;"
    " use at most 3"
  )


def test_queries_without_a_label_are_an_error_and_not_nan():
  x, labels = np.eye(4), np.array([0, 1, 1, 2])
  with pytest.raises(errors.UserError, match=r"config\.knn\.test has no readable"):
    few(x, labels, x, labels * 0 - 1)


class Squares:
  """A labelled source of plain images, brighter with the class."""

  where, fingerprint = 'config.knn.train="squares"', "0" * 16
  labels, notes = None, ()

  def __init__(self, count, num_classes=4):
    self.count = count
    self.class_names = tuple(map(str, range(num_classes)))

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    label = index % 4
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, : 2 * label + 1] = 200
    return {"image": image, "label": label}

  def name(self, index):
    return f"squares#{index}"


@jax.jit
def pixels(params, image):
  return image.reshape(len(image), -1) * params


def evaluation(train, test, ks=(1, 4), progress=lambda: None):
  return knn.Evaluation(
    train,
    test,
    mesh=mesh_of(1, 1),
    ks=ks,
    temperature=0.07,
    resize=8,
    crop=8,
    batch_size=8,
    max_pixels=64,
    workers=0,
    progress=progress,
  )


def accuracy(train, test, **changes):
  return evaluation(train, test, **changes).accuracy(pixels, jnp.float32(0.5))


def test_two_sources_are_evaluated_from_images_to_accuracy():
  batches = []
  found = evaluation(Squares(37), Squares(13), progress=lambda: batches.append(1))
  assert found.images == {"train": 37, "test": 13}
  result = found.accuracy(pixels, jnp.float32(0.5))
  assert len(batches) == 5 + 2
  assert set(result.values()) == {1.0}
  assert set(result) == {f"knn_top{top}_k{k}" for top in (1, 5) for k in (1, 4)}


def test_images_are_as_large_as_in_training_and_a_lost_shard_is_few_lines(
  tmp_path, caplog
):
  large = {f"a/large{i:02}": 9 for i in range(23)}
  for name, side in {"a/0": 8, "b/0": 8, "b/1": 8, **large}.items():
    path = tmp_path / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (side, side), "red").save(path)
  config = quickstart.get_config()
  spec = f"folder:{tmp_path}"
  config.knn.update(train=spec, test=spec, ks=(1,), resize=8, crop=8, batch_size=8)
  config.workers = 0
  config.data.max_pixels = 64
  found = knn.open_evaluation(config, mesh=mesh_of(1, 1), progress=lambda: None)
  found.accuracy(pixels, jnp.float32(0.5))
  lines = [x for x in caplog.messages if "the limit of max_pixels=64" in x]
  assert len(lines) == 2 * bad_records.NAMED
  assert lines[0].startswith(
    f"corrupt image skipped: {tmp_path}/a/large00.png: 9x9 pix"
  )
  assert caplog.text.count("corrupt records so far; --verbosity=0 names all") == 2


def test_a_linear_probe_of_the_same_features_is_added_on_request():
  check = evaluation(Squares(37), Squares(13)).accuracy
  assert check(pixels, jnp.float32(0.5), linear=True)["linear"] == 1.0
  alone = evaluation(Squares(5), Squares(13)).accuracy
  with pytest.raises(errors.UserError, match=r"config\.knn\.linear: .* two images"):
    alone(pixels, jnp.float32(0.5), linear=True)


@pytest.mark.parametrize(
  ("trained", "shown"),
  [
    (0.978, "97.8%: 1.8 points above raw pixels."),
    (0.9601, "96.0%: as much as raw pixels; train longer, or on more images."),
    (0.789, "78.9%: 17.1 points below raw pixels; train longer, or on more images."),
  ],
)
def test_the_verdict_compares_the_trained_network_with_pixels(trained, shown):
  results = {
    name: {"knn_top1_k10": value, "knn_top1_k20": 0.5, "linear": 0.5}
    for name, value in (("trained", trained), ("untrained", 0.416), ("pixels", 0.96))
  }
  start = "Without any label, training took k-NN (k=10) from 41.6% to "
  assert knn.verdict(results) == start + shown
  assert re.search(rf"trained +{trained:.1%} +50.0% +50.0%", knn.table(results))


def test_classes_are_matched_by_name():
  class Backwards(Squares):
    def __getitem__(self, index):
      record = super().__getitem__(index)
      return record | {"label": 3 - record["label"]}

  test = Backwards(13)
  test.class_names = ("3", "2", "1", "0")
  assert set(accuracy(Squares(37), test).values()) == {1.0}


@pytest.mark.parametrize(
  ("train", "test", "ks", "message"),
  [
    (Squares(20, 0), Squares(8), (1,), r"config\.knn\.train .*no labels"),
    (Squares(20), Squares(8, 0), (1,), r"config\.knn\.test .*no labels"),
    (Squares(20), Squares(8, 5), (1,), r"lacks \(1 of 5, such as '4'\)"),
    (Squares(20), Squares(8), (1, 21), r"config\.knn\.ks=\(1, 21\)"),
  ],
)
def test_sources_that_cannot_be_evaluated_are_named_at_start_up(
  train, test, ks, message
):
  with pytest.raises(errors.UserError, match=message):
    evaluation(train, test, ks)


TWO_PROCESSES = """
import sys
sys.path[:0] = [{root!r}, {root!r} + "/tests", {tests!r}]
import jax
jax.distributed.initialize(
  "localhost:" + sys.argv[1], 2, int(sys.argv[2]),
  cluster_detection_method="deactivate",
)
import jax.numpy as jnp, knn_test
from dinojax.evals import features, few_shot, retrieval
mesh = knn_test.mesh_of(1, 2)
bank = features.extract(
  knn_test.Squares(16),
  knn_test.pixels,
  jnp.float32(0.5),
  mesh=mesh,
  batch_size=8,
  resize=8,
  crop=8,
  workers=0,
  description="features",
)
features.check(bank, knn_test.Squares(16))
found = few_shot.few_shot(
  bank, bank, class_names=tuple("0123"), shots=(2,), tries=2, seed=0, ks=(1, 2),
  temperature=0.07, mesh=mesh,
)
assert found["knn_top1_k2_shots2"] == 1 and found["knn_top1_k2_shots2_std"] == 0, found
found = retrieval.retrieval(bank, None, ks=(1,), mesh=mesh, block=8)
assert found["retrieval_map"] == 1 and found["retrieval_left_out"] == 0, found
"""


@pytest.mark.process
def test_two_processes_evaluate_what_neither_could_read_alone():
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    port = str(probe.getsockname()[1])
  tests = pathlib.Path(__file__).parent
  script = TWO_PROCESSES.format(root=str(tests.parent.parent), tests=str(tests))
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", script, port, str(i)],
      env=children.environment(1),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  try:
    outputs = [process.communicate(timeout=300)[1] for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [process.returncode for process in processes] == [0, 0], outputs
