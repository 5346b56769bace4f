"""The command line as a person types it: manifests, one-line mistakes, verbs."""

import json
import os
import subprocess
import sys

import fake_cluster
import pytest
import yaml

from launch import jobs

pytestmark = pytest.mark.process
VALID = (
  *("--config=experiments/vitg14.py", "--accelerator=v5p-128", "--image=i:1"),
  "--workdir=gs://runs/vitg14",
)


def gke(*arguments, kubeconfig="/nowhere", start=("launch/gke.py",)):
  """Runs it from the project's root, with nothing of it on Python's path."""
  env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  # An installed package finds dinojax; launch/ is found by the script alone.
  env |= {"KUBECONFIG": str(kubeconfig)}
  return subprocess.run(
    [sys.executable, *start, *arguments],
    cwd=jobs.ROOT,
    env=env,
    capture_output=True,
    text=True,
    check=False,
    timeout=60,
  )


# Each command line as `python launch/gke.py` runs it, in one process.
PROGRAM = """
import contextlib, io, json, runpy, sys
from absl import app, flags, logging
sys.path[0] = "launch"
app.define_help_flags()
known = set(flags.FLAGS)
for arguments in json.loads(sys.argv.pop()):
  sys.argv[:], status = ["launch/gke.py", *arguments], 0
  flags.FLAGS.unparse_flags()
  for name in set(flags.FLAGS) - known:
    delattr(flags.FLAGS, name)
  for module in [x for x in sys.modules if x.startswith(("dinojax", "launch"))]:
    del sys.modules[module]
  texts = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(texts[0]), contextlib.redirect_stderr(texts[1]):
    try:
      runpy.run_path("launch/gke.py", run_name="__main__")
    except SystemExit as error:
      status = error.code
      if isinstance(status, str):
        status = print(status, file=sys.stderr) or 1
  print(json.dumps([status, *(text.getvalue() for text in texts)]))
"""


@pytest.fixture
def fake():
  with fake_cluster.FakeCluster() as server:
    yield server


def test_a_dry_run_prints_the_manifest_alone_and_notes_beside_it():
  result = gke(*VALID, "--config.total_steps=2000000", "--dry_run", "--spot")
  assert result.returncode == 0, result.stderr
  manifest = yaml.safe_load(result.stdout)
  assert manifest["metadata"]["name"] == "vitg14-v5p-128"
  assert "--config.total_steps=2000000" in result.stdout
  first, *notes, last = result.stderr.splitlines()
  assert first.startswith(
    "note: before this job can be submitted: no cluster to talk to"
  )
  assert all(line.startswith("note: ") for line in notes)
  given = (*VALID, "--config.total_steps=2000000", "--spot")
  assert last == f"next: python launch/gke.py {' '.join(given)}"
  for said in (
    "JobSet 0.10.1 or newer, a node pool of 32 ct5p-hightpu-4t with topology 4x4x8",
    "quota for 128 chips",
    "pods with TPUs run privileged, which policies of namespace default must allow",
    "service account default/default by workload identity roles/storage.objectUser on"
    " gs://runs",
    "Spot VMs end some 15 s after SIGTERM, also with --grace_seconds=600: a save",
    "config.data.sources[0]=arrayrecord:data/web142m/*.array_record is a path in the"
    " image",
    "--env=TFDS_DATA_DIR=gs://BUCKET/PATH",
  ):
    assert said in result.stderr


def test_gpus_and_a_queue_are_noted_and_data_that_pods_find_are_not():
  result = gke(
    *VALID,
    *("--accelerator=h200-128", "--queue=research", "--namespace=vision", "--dry_run"),
    *("--config.data.sources=arrayrecord:gs://web/*", "--env=TFDS_DATA_DIR=gs://tfds"),
  )
  assert "by GPUDirect-RDMA: the cluster needs multi-networking" in result.stderr
  assert "Kueue with a LocalQueue research in vision" in result.stderr
  assert "roles/storage.objectViewer on gs://tfds" in result.stderr
  assert "in the image" not in result.stderr


MISTAKES = [
  ((), "--config=FILE is missing"),
  (VALID[:1], "--accelerator=NAME is missing"),
  ((*VALID, "--accelerator=v5q-128"), "did you mean v5p-128"),
  ((*VALID, "--config.data.batch_size=100"), "try 2048"),
  ((*VALID, "--config.nonsense=1"), "--config has no such field: nonsense"),
  ((*VALID, "--config.workdir=gs://a/b"), "--workdir=gs://... sets"),
  ((*VALID, "--workdir=runs/x"), "is a local path"),
  ((*VALID, "--slices=two"), "flag --slices=two"),
  ((*VALID, "--slice=2"), "Unknown command line flag 'slice'"),
  ((*VALID, "--env=API_KEY=k"), "--secret_env=API_KEY=SECRET:KEY"),
  (("--config=experiments/none.py",), "experiments/none.py: there is no such file"),
  (VALID, "no cluster to talk to"),
  (("start",), "'start' is no verb; there are submit, status, logs, stop"),
  (("stop",), "stop needs the name of one job"),
  (("submit", "x", *VALID), "'x' is no option"),
  (("status", "x"), "no cluster to talk to"),
]


def test_every_mistake_is_one_line():
  done = gke(
    json.dumps([arguments for arguments, _ in MISTAKES]), start=("-c", PROGRAM)
  )
  assert done.returncode == 0, done.stderr
  ends = map(json.loads, done.stdout.splitlines())
  for (_, message), (status, output, said) in zip(MISTAKES, ends, strict=True):
    (line,) = said.splitlines()
    assert (status, output) == (1, ""), line
    assert line.startswith("dinojax: ")
    assert message in line
  alone = gke()  # as the first of them, in a process of its own
  assert (alone.returncode, alone.stdout, alone.stderr.count("\n")) == (1, "", 1)
  assert MISTAKES[0][1] in alone.stderr


def test_a_job_is_submitted_looked_at_read_and_stopped(fake, tmp_path):
  kubeconfig = fake.kubeconfig(tmp_path)
  asked = (*VALID, "--name=My_Run", "--namespace=vision")
  result = gke(*asked, kubeconfig=kubeconfig)
  assert result.returncode == 0, result.stderr
  assert result.stdout.splitlines() == [
    "my-run is submitted: 128 chips on 32 hosts",
    "  python launch/gke.py status my-run --namespace=vision",
    "  python launch/gke.py logs my-run --namespace=vision --follow",
    "  python launch/gke.py stop my-run --namespace=vision",
  ]
  assert list(fake.jobsets) == [("vision", "my-run")]
  fake.pods = [fake_cluster.pod("p", jobset="my-run", host=3)]
  fake.logs["p"] = ["loss 5.8\n"]

  status = gke("status", "My_Run", "--namespace=vision", kubeconfig=kubeconfig)
  assert "pods: 1 Running, of 32" in status.stdout, status.stderr
  logs = gke("logs", "my-run", *asked[-1:], "--process=3", kubeconfig=kubeconfig)
  assert logs.stdout == "loss 5.8\n", logs.stderr
  stop = gke("stop", "my-run", *asked[-1:], kubeconfig=kubeconfig)
  assert stop.stdout.startswith("my-run is stopping:"), stop.stderr
  assert fake.jobsets == {}


def test_the_accelerators_are_listed_and_help_explains_how_they_count():
  assert "v5p-128          128    32  4x4x8" in gke("accelerators").stdout
  for flag in ("--help", "--helpshort"):
    result = gke(flag)
    assert (result.returncode, result.stderr) == (0, "")
    assert "v5p-128 is 128 chips" in result.stdout
