"""What a person asks for is checked, and completed, before it reaches a cluster."""

import re

import pytest
from absl import flags
from ml_collections import config_flags

from dinojax import errors
from experiments import vitg14
from launch import buckets, jobs


def make(config=None, **changes):
  asked = {
    "config_file": "experiments/vitg14.py",
    "overrides": {},
    "accelerator": "v5p-128",
    "image": "registry/dinojax:1",
    "workdir": "gs://runs/vitg14",
  }
  return jobs.make(config or vitg14.get_config(), **{**asked, **changes})


def changed(**fields):
  config = vitg14.get_config()
  config.update_from_flattened_dict(fields)
  return config


def test_the_command_trains_the_config_with_its_workdir_at_the_mount():
  job = make()
  assert job.command == (
    *("python", "-m", "dinojax.main", "--config=experiments/vitg14.py"),
    "--config.workdir=/gcs/workdir/runs/vitg14",
  )
  assert job.mounts == (buckets.Mount("/gcs/workdir/runs", "runs", False),)


def test_the_pods_parse_the_config_that_was_submitted_with_paths_for_buckets(
  monkeypatch,
):
  sources = ("arrayrecord:gs://web/a b/*.array_record", "folder:/in/image")
  overrides = {
    "data.sources": sources,
    "data.weights": (9.0, 1.0),
    "optimizer.eps": 1e-6,
    "data.accept_changed": True,
    "backbone.pool": "cls",
    "init.backbone": "gs://runs/old/vitg14.safetensors",
  }
  config = changed(**overrides)
  job = make(config, overrides=overrides)
  expected = {
    **overrides,
    "data.sources": ("arrayrecord:/gcs/data/web/a b/*.array_record", sources[1]),
    "init.backbone": "/gcs/data/runs/old/vitg14.safetensors",
    "workdir": "/gcs/workdir/runs/vitg14",
  }
  monkeypatch.chdir(jobs.ROOT)
  assert parse(job.command[2:]).to_dict() == changed(**expected).to_dict()
  assert job.mounts == (
    buckets.Mount("/gcs/data/runs", "runs", True),
    buckets.Mount("/gcs/data/web", "web", True),
    buckets.Mount("/gcs/workdir/runs", "runs", False),
  )


def parse(command):
  """The config of a command line as dinojax.main reads it."""
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=command)
  values(command)
  return values.config


def test_a_bucket_in_the_environment_is_mounted_too():
  job = make(env={"TFDS_DATA_DIR": "gs://tfds/all/"})
  assert job.env == {"TFDS_DATA_DIR": "/gcs/data/tfds/all/"}
  assert buckets.Mount("/gcs/data/tfds", "tfds", True) in job.mounts


@pytest.mark.parametrize(
  ("asked", "message"),
  [
    ({"accelerator": "v5p-120"}, r"--accelerator=v5p-120 is no slice.*try v5p-64 or"),
    ({"accelerator": "v5p-256"}, r"config.data.batch_size=2048 .*try 4096"),
    ({"accelerator": "v5p-4"}, r"config.mesh.data=-1 times config.mesh.fsdp=16 must"),
    ({"slices": 2}, r"config.data.batch_size=2048 .*256 devices"),
    ({"slices": 0}, r"--slices=0 must be at least 1"),
    ({"accelerator": "v5p-4", "slices": 4}, r"slices of one host cannot be joined"),
    (
      {"accelerator": "h200-64", "slices": 2},
      r"--slices=2 is for TPUs; for more GPUs: --accelerator=h200-128",
    ),
    ({"image": ""}, r"--image=REGISTRY/IMAGE:TAG is missing"),
    ({"workdir": ""}, r"--workdir=gs://BUCKET/PATH is missing"),
    ({"workdir": "gs://"}, r"--workdir=gs:// names no bucket.*gs://BUCKET/PATH"),
    ({"workdir": "runs/a"}, r"--workdir=runs/a is a local path.*gs://BUCKET/PATH"),
    ({"workdir": "gs://b/a"}, r"--workdir='gs://b/a': a bucket's name has 3 to 222"),
    ({"workdir": "gs://Run/a"}, r"has a-z, 0-9, dots, .* alone, unlike 'Run'"),
    ({"workdir": "gs://runs-/a"}, r"begins and ends with a letter or a digit, unlike"),
    ({"workdir": "gs://runs/"}, r"--workdir=gs://runs/ is a whole bucket"),
    ({"config_file": "/etc/x.py"}, r"--config=/etc/x.py is outside of"),
    ({"env": {"HF_TOKEN": "hf_123"}}, r"give --secret_env=HF_TOKEN=SECRET:KEY$"),
  ],
)
def test_a_mistake_is_one_line_before_anything_is_submitted(asked, message):
  with pytest.raises(errors.UserError, match=message) as raised:
    make(**asked)
  assert "\n" not in str(raised.value)
  assert "hf_123" not in str(raised.value)


def test_two_slices_are_twice_the_devices():
  config = changed(**{"data.batch_size": 4096})
  assert make(config, slices=2).name == "vitg14-2xv5p-128"
  with pytest.raises(errors.UserError, match=r"384 devices.*try 6144"):
    make(config, slices=3)
  config = changed(**{"data.batch_size": 4096, "mesh.data": 1, "mesh.fsdp": -1})
  with pytest.raises(errors.UserError, match=r"128 devices of each of 2 slices"):
    make(config, slices=2)


@pytest.mark.parametrize(
  ("text", "name"),
  [
    ("vitg14-v5p-128", "vitg14-v5p-128"),
    ("My Run_1.2", "my-run-1-2"),
    ("14g", "run-14g"),
    ("-", "run"),
    ("x-" * 30, f"{'x-' * 16}x-a6e3e0"),
  ],
)
def test_a_name_is_made_valid_and_a_valid_one_is_kept(text, name):
  assert jobs.valid_name(text) == name
  assert jobs.valid_name(name) == name
  assert re.fullmatch("[a-z]([a-z0-9-]*[a-z0-9])?", name)
  assert len(f"{name}-train-99-999-abcde") <= 63


def test_long_names_that_differ_at_their_end_stay_different():
  assert jobs.valid_name("x" * 60 + "a") != jobs.valid_name("x" * 60 + "b")


@pytest.mark.parametrize("text", ["A", "A=", "=b"])
def test_a_variable_without_name_or_value_is_refused(text):
  with pytest.raises(errors.UserError, match=r"--env=.* must be NAME=VALUE"):
    jobs.pairs([text], flag="env", form="NAME=VALUE")


def test_secrets_are_references_and_a_value_given_instead_is_not_repeated():
  assert jobs.secrets(["HF_TOKEN=hub:token"]) == {"HF_TOKEN": ("hub", "token")}
  for text in ("HF_TOKEN=hf_abcDEF", "HF_TOKEN"):
    with pytest.raises(
      errors.UserError, match="a key of a Kubernetes secret"
    ) as raised:
      jobs.secrets([text])
    assert "abcDEF" not in str(raised.value)
