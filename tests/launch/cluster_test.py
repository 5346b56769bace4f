"""The real Kubernetes client against a server that speaks its API."""

import socket

import fake_cluster
import pytest

from dinojax import errors
from launch import accelerators, cluster, jobs, jobset


def manifest(name="vitg14-h200-16", slices=1, accelerator="h200-16"):
  return jobset.render(
    jobs.Job(
      name=name,
      image="i:1",
      accelerator=accelerators.find(accelerator),
      command=("python", "-m", "dinojax.main"),
      slices=slices,
    )
  )


@pytest.fixture
def fake():
  with fake_cluster.FakeCluster() as server:
    yield server


@pytest.fixture
def connect(fake, tmp_path, monkeypatch):
  """Opens the client on the fake cluster, by a kubeconfig as everybody has one."""

  def open_it(**options):
    monkeypatch.setattr(
      "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION",
      fake.kubeconfig(tmp_path),
    )
    return cluster.Cluster(**{"namespace": "default", "timeout": 5, **options})

  return open_it


def refused(call, *arguments, **options):
  with pytest.raises(errors.UserError) as raised:
    call(*arguments, **options)
  assert "\n" not in str(raised.value)
  return str(raised.value)


def test_a_job_is_created_whole_and_every_field_is_checked_by_the_server(fake, connect):
  connect(namespace="vision").submit(manifest())
  ((method, path, query, body),) = fake.requests
  assert (method, body) == ("POST", manifest())
  assert path == "/apis/jobset.x-k8s.io/v1alpha2/namespaces/vision/jobsets"
  assert query["fieldValidation"] == "Strict"
  assert fake.jobsets == {("vision", "vitg14-h200-16"): manifest()}


def test_a_name_that_is_taken_is_told_with_what_to_do(connect):
  connect().submit(manifest())
  assert refused(connect().submit, manifest()) == (
    "vitg14-h200-16 exists already in namespace default: see status vitg14-h200-16; to"
    " restart it, stop vitg14-h200-16 first, or choose another --name"
  )


FORBIDDEN = (
  'jobsets.jobset.x-k8s.io is forbidden: User "{}" cannot create resource "jobsets" in'
  ' API group "jobset.x-k8s.io" in the namespace "default"'
)


@pytest.mark.parametrize(
  ("answer", "message"),
  [
    (
      (403, FORBIDDEN.format("me@x.org")),
      "you may not create this in namespace default",
    ),
    ((403, FORBIDDEN.format("system:anonymous")), "does not know you"),
    ((401, "Unauthorized"), "does not know you (Unauthorized); gcloud auth login"),
    (
      (404, "404 page not found\n"),
      "the cluster has no JobSets; install them: kubectl",
    ),
    ((404, 'namespaces "default" not found'), "kubectl create namespace default"),
    (
      (409, "object is being deleted: already exists"),
      "is still stopping in namespace",
    ),
    (
      (400, 'strict decoding error: unknown field "spec.x"'),
      "JobSets are older than this manifest (strict decoding error: unknown field",
    ),
    (
      (422, "spec.x: Invalid value:\n  too long"),
      "422 spec.x: Invalid value: too long",
    ),
    ((500, "etcd is\nslow\n"), "did not create vitg14-h200-16: 500 etcd is slow"),
  ],
)
def test_a_refusal_is_one_line_that_says_what_to_do(fake, connect, answer, message):
  fake.refusal = answer
  assert message in refused(connect().submit, manifest())


def test_a_cluster_that_does_not_answer_ends_at_the_timeout_with_the_doubt_told(
  fake, connect
):
  fake.delay = 1
  message = refused(connect(timeout=0.2).submit, manifest())
  assert (
    "did not answer within 0.2 s; it may still create vitg14-h200-16: see" in message
  )
  assert len(fake.requests) == 1, "a job must not be submitted twice"


def test_a_question_that_is_not_answered_is_asked_once(fake, connect):
  fake.delay = 1
  message = refused(connect(timeout=0.2).status, "x")
  assert message.endswith("within 0.2 s; try again, with a larger --timeout")
  assert len(fake.requests) == 1


def test_a_cluster_that_is_not_there_is_told(tmp_path, connect, monkeypatch):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    gone = f"http://127.0.0.1:{free.getsockname()[1]}"
  client = connect()
  path = fake_cluster.write_kubeconfig(tmp_path, gone)
  monkeypatch.setattr(
    "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", path
  )
  client = cluster.Cluster(namespace="default", timeout=5)
  assert refused(client.submit, manifest()).startswith(f"{gone} cannot be reached (")


@pytest.mark.parametrize("text", [None, "", "{", "clusters: []"])
def test_without_a_usable_kubeconfig_the_way_to_one_is_told(
  tmp_path, monkeypatch, text
):
  path = tmp_path / "kubeconfig"
  if text is not None:
    path.write_text(text)
  monkeypatch.setattr(
    "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path)
  )
  message = refused(cluster.Cluster, namespace="default")
  assert "gcloud container clusters get-credentials" in message


def test_an_unknown_context_is_told(connect):
  assert "elsewhere" in refused(connect, context="elsewhere")


def test_status_tells_where_a_job_stands_its_restarts_and_why_pods_wait(fake, connect):
  name = "vitg14-h200-16"
  unschedulable = {
    "type": "PodScheduled",
    "status": "False",
    "message": "0/9 nodes are available:\n 9 Insufficient nvidia.com/gpu.",
  }
  pulling = {
    "name": "train",
    "image": "i:1",
    "imageID": "",
    "ready": False,
    "restartCount": 0,
    "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no i:1"}},
  }
  fake.jobsets["default", name] = {
    **manifest(),
    "status": {
      "restarts": 5,
      "restartsCountTowardsMax": 2,
      "replicatedJobsStatus": [{"name": "train", "ready": 0}],
    },
  }
  fake.pods = [
    fake_cluster.pod("a", jobset=name, phase="Pending", conditions=[unschedulable]),
    fake_cluster.pod(
      "b", jobset=name, host=1, phase="Pending", containerStatuses=[pulling]
    ),
    fake_cluster.pod("c", jobset="another"),
  ]
  assert connect().status(name).splitlines() == [
    "vitg14-h200-16 in default: starting",
    "  restarts: 5, of which 2 count towards the limit of 10",
    "  pods: 2 Pending, of 2",
    "  not scheduled: 0/9 nodes are available: 9 Insufficient nvidia.com/gpu.",
    "  train waits: ImagePullBackOff no i:1",
  ]


@pytest.mark.parametrize(
  ("change", "word"),
  [
    ({"spec": {"suspend": True}}, "waiting for its queue"),
    ({"status": {"replicatedJobsStatus": [{"name": "train", "ready": 1}]}}, "running"),
    ({"status": {"terminalState": "Completed"}}, "completed"),
    ({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}, "stopping"),
  ],
)
def test_status_says_in_a_word_where_a_job_stands(fake, connect, change, word):
  whole = {**manifest(), "status": {}}
  for part, fields in change.items():
    whole[part] = {**whole[part], **fields}
  fake.jobsets["default", "vitg14-h200-16"] = whole
  first = connect().status("vitg14-h200-16").splitlines()[0]
  assert first == f"vitg14-h200-16 in default: {word}"


def test_status_tells_how_a_job_ended(fake, connect):
  fake.jobsets["default", "vitg14-h200-16"] = {
    **manifest(),
    "status": {
      "terminalState": "Failed",
      "conditions": [
        {"type": "Suspended", "status": "False", "reason": "R", "message": "old"},
        {
          "type": "Failed",
          "status": "True",
          "reason": "ReachedMaxRestarts",
          "message": "jobset failed due to\nreaching max number of restarts",
          "lastTransitionTime": "2026-01-01T00:00:00Z",
        },
      ],
    },
  }
  assert connect().status("vitg14-h200-16").splitlines()[:2] == [
    "vitg14-h200-16 in default: failed",
    "  Failed since 2026-01-01T00:00:00Z (ReachedMaxRestarts): jobset failed due to"
    " reaching max number of restarts",
  ]


def test_a_job_that_is_not_there_is_told_by_every_verb(connect):
  client = connect()
  for call in (client.status, client.stop):
    assert refused(call, "gone").startswith("there is no gone in namespace default;")
  message = refused(lambda: list(client.logs("gone", process=0, follow=False)))
  assert message.startswith("there is no gone in namespace default;")


def test_the_log_is_that_of_the_newest_pod_of_a_process_line_by_line(fake, connect):
  name = "vitg14-v5p-16"
  fake.jobsets["default", name] = manifest(name, 2, "v5p-16")
  old = fake_cluster.pod("old", jobset=name, slice_index=1, host=2)
  new = fake_cluster.pod("new", jobset=name, slice_index=1, host=2)
  new["metadata"]["creationTimestamp"] = "2026-01-02T00:00:00Z"
  fake.pods = [old, new, fake_cluster.pod("other", jobset=name, host=2)]
  fake.logs["new"] = ["step 1\nst", "ep 2\nend"]
  lines = list(connect().logs(name, process=6, follow=True))
  assert lines == ["step 1", "step 2", "end"]
  _, path, query, _ = fake.requests[-1]
  assert path.endswith("/pods/new/log")
  assert (query["container"], query["follow"].lower()) == ("train", "true")
  assert "from 0 to 7: vitg14-v5p-16 has 8 pods" in refused(
    lambda: list(connect().logs(name, process=8, follow=False))
  )
  assert "has no pod now" in refused(
    lambda: list(connect().logs(name, process=1, follow=False))
  )


def test_a_log_that_has_not_begun_is_told(fake, connect):
  client = connect()
  fake.refusal = 400, 'container "train" in pod "x" is waiting to start: PullImage'
  with pytest.raises(errors.UserError, match="no log yet"):
    client.status("vitg14-h200-16")


def test_stopping_deletes_in_the_foreground(fake, connect):
  client = connect()
  client.submit(manifest())
  client.stop("vitg14-h200-16")
  assert fake.jobsets == {}
  assert fake.requests[-1][0] == "DELETE"
  assert fake.requests[-1][3]["propagationPolicy"] == "Foreground"
