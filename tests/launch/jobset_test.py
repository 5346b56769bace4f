"""The manifest: what Kubernetes' schemas take, line by line for two, rule by rule."""

import pathlib
import re

import kubernetes_validate
import pytest
import yaml

from launch import accelerators, buckets, jobs, jobset

GOLDEN = pathlib.Path(__file__).parent / "golden"
MOUNTS = (
  buckets.Mount("/gcs/data/web142m", "web142m", True),
  buckets.Mount("/gcs/workdir/my-runs", "my-runs", False),
)


def job(name="v5p-128", **changes):
  fields = {
    "name": f"vitg14-{name}",
    "image": "europe-docker.pkg.dev/my-project/images/dinojax:1",
    "accelerator": accelerators.find(name),
    "command": (
      *("python", "-m", "dinojax.main", "--config=experiments/vitg14.py"),
      "--config.data.sources=('arrayrecord:/gcs/data/web142m/*.array_record',)",
      "--config.workdir=/gcs/workdir/my-runs/vitg14",
    ),
    "mounts": MOUNTS,
  }
  return jobs.Job(**{**fields, **changes})


def everything(name):
  """A job with every field set."""
  return job(
    name,
    env={"TFDS_DATA_DIR": "/gcs/data/web142m/tfds"},
    secret_env={"HF_TOKEN": ("hub", "token")},
    namespace="vision",
    service_account="trainer",
    queue="research",
    spot=True,
    node_selector={"cloud.google.com/reservation-name": "mine"},
    max_restarts=3,
    grace_seconds=25,
  )


def inner_job(manifest):
  """The Job that the JobSet makes."""
  spec = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
  return {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "inner"},
    "spec": spec,
  }


def pod(manifest):
  return inner_job(manifest)["spec"]["template"]["spec"]


def validate(manifest):
  kubernetes_validate.validate(inner_job(manifest), "1.31", strict=True)


# One host and several, of TPUs and of GPUs: manifests differ by that alone.
@pytest.mark.parametrize(
  "name", ["v5e-4", "v5p-128", "h100-8", "h200-128", "h100-mega-16"]
)
def test_the_inner_job_is_valid(name):
  validate(jobset.render(everything(name)))
  validate(jobset.render(job(name, mounts=())))


def test_the_validation_sees_a_misspelt_a_missing_and_a_mistyped_field():
  def broken(change):
    manifest = jobset.render(job())
    change(pod(manifest), inner_job(manifest)["spec"])
    with pytest.raises(kubernetes_validate.ValidationError):
      validate(manifest)

  broken(lambda pod, _: pod.update(terminationGracePeriodSecond=3))
  broken(lambda pod, _: pod["containers"][0].pop("name"))
  broken(lambda _, spec: spec.update(parallelism="32"))


@pytest.mark.parametrize("name", ["v5p-128", "h200-128", "h100-mega-128"])
def test_the_manifest_is_the_one_that_was_reviewed(name):
  text = jobset.to_yaml(jobset.render(job(name)))
  assert text == (GOLDEN / f"{name}.yaml").read_text()


def test_the_yaml_is_the_manifest():
  manifest = jobset.render(everything("h100-16"))
  text = jobset.to_yaml(manifest)
  assert yaml.safe_load(text) == manifest
  assert "&id" not in text


def outcome(manifest, *, status=None, disrupted=False):
  """What becomes of a JobSet when a pod fails: as the two controllers document it.

  The Job's applies the first rule that fits the pod, and reports it in these words; the
  JobSet's applies the first that fits the Job's reason and message.
  """
  spec = inner_job(manifest)["spec"]
  assert (spec["backoffLimit"], pod(manifest)["restartPolicy"]) == (0, "Never")
  reason, message = "BackoffLimitExceeded", "Job has reached the backoff limit"
  for index, rule in enumerate(spec["podFailurePolicy"]["rules"]):
    assert rule["action"] == "FailJob"
    codes = rule.get("onExitCodes", {"containerName": "", "values": []})
    if disrupted and "onPodConditions" in rule:
      assert rule["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
      found = "Pod default/x has condition DisruptionTarget"
    elif status in codes["values"]:
      assert codes["containerName"] == pod(manifest)["containers"][0]["name"]
      assert codes["operator"] == "In"
      found = f"Container train for pod default/x failed with exit code {status}"
    else:
      continue
    reason, message = (
      "PodFailurePolicy",
      f"{found} matching FailJob rule at index {index}",
    )
    break
  for rule in manifest["spec"]["failurePolicy"]["rules"]:
    patterns = rule.get("onJobFailureMessagePatterns", [""])
    if reason in rule["onJobFailureReasons"] and any(
      re.search(pattern, message) for pattern in patterns
    ):
      return rule["action"]
  return "RestartJobSet"  # and counts


@pytest.mark.parametrize(
  ("failure", "action"),
  [
    (dict(status=1), "FailJobSet"),  # a user error or a bug would come again
    (dict(status=143), "RestartJobSetAndIgnoreMaxRestarts"),  # saved
    (dict(status=137, disrupted=True), "RestartJobSetAndIgnoreMaxRestarts"),
    (dict(status=1, disrupted=True), "RestartJobSetAndIgnoreMaxRestarts"),
    (dict(status=75), "RestartJobSet"),  # lost peers, a hang, a failed disk
    (dict(status=137), "RestartJobSet"),  # no memory
    (dict(status=134), "RestartJobSet"),
  ],
)
def test_the_exit_status_of_a_pod_decides_whether_the_job_is_restarted(failure, action):
  manifest = jobset.render(job(max_restarts=7))
  assert outcome(manifest, **failure) == action
  assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 7


def test_slices_are_jobs_and_hosts_their_pods():
  manifest = jobset.render(job("v6e-64", slices=3))
  assert manifest["spec"]["replicatedJobs"][0]["replicas"] == 3
  spec = inner_job(manifest)["spec"]
  assert spec["parallelism"] == spec["completions"] == 16
  assert spec["completionMode"] == "Indexed"


@pytest.mark.parametrize(
  ("name", "peers"),
  [
    ("v5p-128", []),  # GKE tells them
    ("h100-8", []),
    (
      "h100-mega-16",
      [
        "--coordinator=vitg14-h100-mega-16-train-0-0.vitg14-h100-mega-16:8476",
        "--num_processes=2",
        "--process_id=$(JOB_COMPLETION_INDEX)",
      ],
    ),
  ],
)
def test_gpu_nodes_are_told_of_each_other_if_there_are_several(name, peers):
  asked = job(name)
  command = pod(jobset.render(asked))["containers"][0]["command"]
  whole = [*asked.command, *peers]
  assert command[-len(whole) :] == whole


def test_only_a_slice_of_several_hosts_has_a_node_pool_to_itself():
  key = "alpha.jobset.sigs.k8s.io/exclusive-topology"

  def annotation(asked):
    return jobset.render(asked)["metadata"].get("annotations", {}).get(key)

  assert annotation(job("v5p-8")) == "cloud.google.com/gke-nodepool"
  assert annotation(job("h200-16")) == "cloud.google.com/gke-nodepool"
  assert annotation(job("v5p-4")) is None
  assert annotation(job("v5p-8", exclusive_topology=False)) is None


def test_pods_with_tpus_and_only_they_are_privileged():
  def context(name):
    return pod(jobset.render(job(name)))["containers"][0].get("securityContext")

  assert context("v6e-8") == {"privileged": True, "runAsUser": 0}
  assert context("h200-16") == {"runAsUser": 0}
  assert context("h200-8") is None


def test_queue_spot_and_grace_stand_where_kubernetes_looks_for_them():
  manifest = jobset.render(everything("v5p-8"))
  assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
  assert manifest["metadata"]["namespace"] == "vision"
  spec = pod(manifest)
  assert spec["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
    "cloud.google.com/gke-tpu-topology": "2x2x2",
    "cloud.google.com/reservation-name": "mine",
    "cloud.google.com/gke-spot": "true",
  }
  assert {t["key"] for t in spec["tolerations"]} == {
    "google.com/tpu",
    "cloud.google.com/gke-spot",
  }
  assert spec["terminationGracePeriodSeconds"] == 25
  assert spec["serviceAccountName"] == "trainer"
  assert "kueue.x-k8s.io/queue-name" not in jobset.render(job())["metadata"]["labels"]


def test_processes_of_a_run_know_a_secret_that_no_other_run_has():
  for name in ("v5p-8", "h200-16"):
    container = pod(jobset.render(job(name)))["containers"][0]
    [secret] = [x for x in container["env"] if x["name"] == "DINOJAX_SECRET"]
    assert secret["valueFrom"]["fieldRef"]["fieldPath"] == (
      "metadata.labels['jobset.sigs.k8s.io/jobset-uid']"
    )


def test_a_secret_is_a_reference_and_stands_in_no_argument():
  container = pod(jobset.render(everything("v5p-8")))["containers"][0]
  assert {
    "name": "HF_TOKEN",
    "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}},
  } in container["env"]
  assert "hub" not in " ".join(container["command"])


def test_dollars_reach_the_program_as_they_are_written():
  asked = job("h100-16", command=("python", "--x=$(HOME)"), env={"A": "$(B)"})
  container = pod(jobset.render(asked))["containers"][0]
  assert container["command"][1] == "--x=$$(HOME)"
  assert {"name": "A", "value": "$$(B)"} in container["env"]
  assert container["command"][-1] == "--process_id=$(JOB_COMPLETION_INDEX)"


def test_buckets_are_mounted_where_the_command_looks_and_data_only_to_be_read():
  manifest = jobset.render(job())
  spec = pod(manifest)
  volumes = {v["name"]: v["csi"] for v in spec["volumes"] if "csi" in v}
  found = {
    m["mountPath"]: (
      volumes[m["name"]]["volumeAttributes"]["bucketName"],
      m["readOnly"] and volumes[m["name"]]["readOnly"],
    )
    for m in spec["containers"][0]["volumeMounts"]
    if m["name"] in volumes
  }
  assert found == {
    "/gcs/data/web142m": ("web142m", True),
    "/gcs/workdir/my-runs": ("my-runs", False),
  }
  read, write = (volumes[f"bucket-{i}"]["volumeAttributes"] for i in (0, 1))
  # A checkpoint is written by several hosts, under any user, and its folder renamed.
  for option in ("metadata-cache:ttl-secs:0", "rename-dir-limit", "dir-mode=777"):
    assert option in write["mountOptions"]
    assert option not in read["mountOptions"]
  template = inner_job(manifest)["spec"]["template"]
  assert template["metadata"]["annotations"]["gke-gcsfuse/volumes"] == "true"
  assert (
    "annotations"
    not in (inner_job(jobset.render(job(mounts=())))["spec"]["template"]["metadata"])
  )
