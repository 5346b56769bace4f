"""JobSets on a cluster, by the Kubernetes client: create, status, logs, delete.

Any error of the cluster, or of the way to it, becomes one UserError: a line with the
way out. No call waits longer than its timeout.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import urllib3
import yaml
from kubernetes import client, config
from kubernetes.client import exceptions

from dinojax import errors
from launch import jobset

INSTALL_JOBSET = (
  "kubectl apply --server-side -f"
  " https://github.com/kubernetes-sigs/jobset/releases/latest/download/manifests.yaml"
)
SILENCE = 6 * 3600  # seconds for which a log that is followed may have nothing new
_BELONGS = "jobset.sigs.k8s.io/jobset-name"
_SLICE = "jobset.sigs.k8s.io/job-index"
_HOST = "batch.kubernetes.io/job-completion-index"


class Cluster:
  """A namespace of the cluster that a kubeconfig names."""

  def __init__(self, *, namespace: str, context: str = "", timeout: float = 30):
    """Reads the kubeconfig; the cluster is asked by the methods.

    Args:
      namespace: where the jobs are.
      context: of the kubeconfig; "": the current one.
      timeout: seconds for a connection, and for an answer.
    """
    self._namespace = namespace
    self._timeout = (timeout, timeout)
    settings = client.Configuration()
    try:
      config.load_kube_config(context=context or None, client_configuration=settings)
    except (config.ConfigException, OSError, yaml.YAMLError) as error:
      reason = " ".join(str(error).split())
      raise errors.UserError(
        f"no cluster to talk to ({reason}); get one by: gcloud container clusters"
        " get-credentials CLUSTER --location=LOCATION"
      ) from error
    settings.retries = False  # The timeout is a promise.
    self._host = settings.host
    api = client.ApiClient(settings)
    self._objects = client.CustomObjectsApi(api)
    self._core = client.CoreV1Api(api)
    self._kind = (jobset.GROUP, jobset.VERSION, namespace, jobset.PLURAL)

  def submit(self, manifest: dict[str, Any]) -> None:
    """Creates a JobSet; the server checks every field."""
    name = manifest["metadata"]["name"]
    with self._explained("create", name):
      self._objects.create_namespaced_custom_object(
        *self._kind,
        manifest,
        field_validation="Strict",
        _request_timeout=self._timeout,
      )

  def status(self, name: str) -> str:
    """State, restarts and pods of a JobSet, in a few lines."""
    found = self._get(name)
    pods = self._pods(name)
    state = found.get("status", {})
    spec = found["spec"]
    lines = [f"{name} in {self._namespace}: {_summary(found)}"]
    for condition in state.get("conditions", []):
      if condition["status"] == "True":
        text = " ".join(condition.get("message", "").split())
        lines.append(
          f"  {condition['type']} since {condition.get('lastTransitionTime', '?')}"
          f" ({condition.get('reason', '')}): {text}"
        )
    counted = state.get("restartsCountTowardsMax", 0)
    limit = spec.get("failurePolicy", {}).get("maxRestarts", 0)
    lines.append(
      f"  restarts: {state.get('restarts', 0)}, of which {counted} count towards the"
      f" limit of {limit}"
    )
    phases = Counter(pod.status.phase for pod in pods)
    shown = ", ".join(f"{n} {phase}" for phase, n in sorted(phases.items()))
    lines.append(f"  pods: {shown or 'none'}, of {_wanted(spec)}")
    lines += sorted({f"  {text}" for text in map(_trouble, pods) if text})
    return "\n".join(lines)

  def logs(self, name: str, *, process: int, follow: bool) -> Iterator[str]:
    """Yields the lines of one process's pod as they come.

    Args:
      name: of the JobSet.
      process: number, as JAX counts them: slice by slice, host by host.
      follow: wait for more, until the pod ends.
    """
    spec = self._get(name)["spec"]
    total, hosts = _wanted(spec), _hosts(spec)
    if not 0 <= process < total:
      raise errors.UserError(
        f"--process={process} must be from 0 to {total - 1}: {name} has {total} pods"
      )
    place = f"{_SLICE}={process // hosts},{_HOST}={process % hosts}"
    pods = self._pods(name, place)
    if not pods:
      raise errors.UserError(
        f"process {process} of {name} has no pod now; see status {name}. Logs of pods"
        " that are gone are in Cloud Logging"
      )
    pod = max(pods, key=lambda p: p.metadata.creation_timestamp)
    with self._explained("read", name):
      lines = self._core.read_namespaced_pod_log(
        pod.metadata.name,
        self._namespace,
        container=jobset.CONTAINER,
        follow=follow,
        _preload_content=False,
        _request_timeout=(self._timeout[0], SILENCE if follow else self._timeout[1]),
      )
      pending = b""
      for part in lines.stream(amt=2**14, decode_content=True):
        *whole, pending = (pending + part).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)
      if pending:
        yield pending.decode(errors="replace")

  def stop(self, name: str) -> None:
    """Deletes a JobSet, which is gone once its pods have ended."""
    with self._explained("delete", name):
      self._objects.delete_namespaced_custom_object(
        *self._kind,
        name,
        body=client.V1DeleteOptions(propagation_policy="Foreground"),
        _request_timeout=self._timeout,
      )

  def _get(self, name: str) -> dict[str, Any]:
    with self._explained("read", name):
      return self._objects.get_namespaced_custom_object(
        *self._kind, name, _request_timeout=self._timeout
      )

  def _pods(self, name: str, labels: str = "") -> list:
    selector = ",".join(filter(None, (f"{_BELONGS}={name}", labels)))
    with self._explained("read", name):
      return self._core.list_namespaced_pod(
        self._namespace, label_selector=selector, _request_timeout=self._timeout
      ).items

  @contextlib.contextmanager
  def _explained(self, verb: str, name: str) -> Iterator[None]:
    """Turns what a call may raise into a UserError."""
    try:
      yield
    except exceptions.ApiException as error:
      raise errors.UserError(self._explain(error, verb, name)) from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
      raise errors.UserError(self._explain_silence(error, verb, name)) from error

  def _explain_silence(self, error: Exception, verb: str, name: str) -> str:
    """One line for no answer at all."""
    silent = isinstance(error, urllib3.exceptions.TimeoutError)
    # urllib3 counts a refused connection among what took too long.
    if silent and not isinstance(error, urllib3.exceptions.NewConnectionError):
      doubt = f"; it may still {verb} {name}: see status {name}"
      asked = isinstance(error, urllib3.exceptions.ReadTimeoutError) and verb != "read"
      return (
        f"{self._host} did not answer within {self._timeout[0]:g} s"
        f"{doubt if asked else ''}; try again, with a larger --timeout"
      )
    return (
      f"{self._host} cannot be reached ({' '.join(str(error).split())}); check the"
      " network, and that the kubeconfig's context is the one you mean"
    )

  def _explain(self, error: exceptions.ApiException, verb: str, name: str) -> str:
    """One line for an answer that is an error."""
    said = _message(error)
    where = f"namespace {self._namespace}"
    if error.status == 409 and "being deleted" in said:
      return (
        f"{name} is still stopping in {where}; submit again once status {name} fails"
      )
    if error.status == 409:
      return (
        f"{name} exists already in {where}: see status {name}; to restart it, stop"
        f" {name} first, or choose another --name"
      )
    if error.status == 401 or "system:anonymous" in said:
      return (
        f"{self._host} does not know you ({said}); gcloud auth login, and gcloud"
        " container clusters get-credentials CLUSTER --location=LOCATION"
      )
    if error.status == 403:
      return (
        f"you may not {verb} this in {where} ({said}); ask for a role that may {verb}"
        " jobsets.jobset.x-k8s.io, pods and pods/log there"
      )
    if error.status == 404 and "namespaces" in said:
      return f"{where} does not exist ({said}); kubectl create {where}"
    if error.status == 404 and f'"{name}"' not in said:
      return f"the cluster has no JobSets; install them: {INSTALL_JOBSET}"
    if error.status == 404:
      return (
        f"there is no {name} in {where}; kubectl get jobsets -A lists what there is"
      )
    if "strict decoding error: unknown field" in said:
      return (
        f"the cluster's JobSets are older than this manifest ({said}); update them:"
        f" {INSTALL_JOBSET}"
      )
    if error.status == 400 and "waiting to start" in said:
      return f"no log yet ({said}); see status {name}"
    return f"the cluster did not {verb} {name}: {error.status} {said}"


def _message(error: exceptions.ApiException) -> str:
  """The server's own message, in one line."""
  body = (
    error.body.decode(errors="replace") if isinstance(error.body, bytes) else error.body
  )
  with contextlib.suppress(ValueError, TypeError, AttributeError):
    body = json.loads(body).get("message", body)
  return " ".join(str(body or error.reason).split())


def _hosts(spec: dict) -> int:
  return spec["replicatedJobs"][0]["template"]["spec"]["parallelism"]


def _wanted(spec: dict) -> int:
  """Pods of a JobSet."""
  return spec["replicatedJobs"][0]["replicas"] * _hosts(spec)


def _summary(found: dict) -> str:
  """The state of a JobSet in a word or two."""
  state = found.get("status", {})
  if found["metadata"].get("deletionTimestamp"):
    return "stopping"
  if state.get("terminalState"):
    return state["terminalState"].lower()
  if found["spec"].get("suspend"):
    return "waiting for its queue"
  ready = sum(job.get("ready", 0) for job in state.get("replicatedJobsStatus", []))
  replicas = found["spec"]["replicatedJobs"][0]["replicas"]
  return "running" if ready == replicas else "starting"


def _trouble(pod) -> str:
  """Why a pod does not run, if its status has a reason."""
  for condition in pod.status.conditions or []:
    if condition.type == "PodScheduled" and condition.status == "False":
      return f"not scheduled: {' '.join((condition.message or '').split())}"
  for container in pod.status.container_statuses or []:
    waiting = container.state and container.state.waiting
    if waiting and waiting.reason not in (None, "ContainerCreating", "PodInitializing"):
      text = " ".join((waiting.message or "").split())
      return f"{container.name} waits: {waiting.reason} {text}".rstrip()
  return ""
