"""JobSet manifest of a job (jobset.x-k8s.io/v1alpha2): a pure function.

A JobSet runs one Job for each slice and in it one pod for each host, gives them names
in DNS, and restarts all of them when one fails. The exit status of `dinojax.main` (see
dinojax/errors.py) decides whether it does:

  1               a user error or a bug, which would come again: the JobSet fails.
  143             ended by SIGTERM with everything saved: any host's preemption ends all
                  hosts so. Restarted without limit, as are pods that were disrupted.
  anything else   lost peers, a hang, no memory: restarted at most max_restarts times.

A disrupted pod counts as disrupted, with any status: the first rule that fits a pod is
applied, and the first that fits a Job. Only the message of a Job has the rule by which
it failed, and JobSet reads messages since 0.10.1.

Sources: JobSet documentation, "Failure Policy", "Labels and annotations" and "Exclusive
placement"; Kubernetes documentation, "Pod failure policy" (rules, and the message of a
Job that fails by one); GKE documentation, "Deploy TPU Multislices in GKE" and "Deploy
TPU workloads in GKE Standard" (privileged mode).
"""

from typing import Any

import yaml

from dinojax import errors
from dinojax.runtime import rendezvous
from launch import buckets, gpudirect, jobs

GROUP, VERSION, PLURAL = "jobset.x-k8s.io", "v1alpha2", "jobsets"
REPLICATED_JOB = "train"
CONTAINER = "train"
COORDINATOR_PORT = 8476
SAVED_AND_ENDED = 143  # 128 + SIGTERM
SPOT = "cloud.google.com/gke-spot"


def render(job: jobs.Job) -> dict[str, Any]:
  """The manifest of a job."""
  chips = job.accelerator
  labels = {"app.kubernetes.io/name": "dinojax"}
  metadata = {"name": job.name, "namespace": job.namespace, "labels": labels}
  if job.queue:
    metadata["labels"] = {**labels, "kueue.x-k8s.io/queue-name": job.queue}
  if job.exclusive_topology and chips.hosts > 1:
    # All pods of a slice in one node pool, and no other slice's pods there.
    metadata["annotations"] = {
      "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
  return {
    "apiVersion": f"{GROUP}/{VERSION}",
    "kind": "JobSet",
    "metadata": metadata,
    "spec": {
      # Hosts find each other by name before they are ready.
      "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
      "failurePolicy": {
        "maxRestarts": job.max_restarts,
        "rules": [
          {
            "name": "mistaken",
            "action": "FailJobSet",
            "onJobFailureReasons": ["PodFailurePolicy"],
            "onJobFailureMessagePatterns": [
              f"exit code {errors.UserError.status} matching FailJob rule"
            ],
          },
          {
            "name": "preempted",
            "action": "RestartJobSetAndIgnoreMaxRestarts",
            "onJobFailureReasons": ["PodFailurePolicy"],
          },
        ],
      },
      "replicatedJobs": [
        {
          "name": REPLICATED_JOB,
          "replicas": job.slices,
          "template": {
            "spec": {
              "parallelism": chips.hosts,
              "completions": chips.hosts,
              "completionMode": "Indexed",
              "backoffLimit": 0,
              "podFailurePolicy": {"rules": _pod_rules()},
              "template": _pod(job, labels),
            }
          },
        }
      ],
    },
  }


def to_yaml(manifest: dict[str, Any]) -> str:
  """The manifest as `kubectl apply -f` takes it."""
  return yaml.dump(manifest, Dumper=_PlainDumper, sort_keys=False, width=88)


class _PlainDumper(yaml.SafeDumper):
  """Writes repeated values in full, instead of references such as "&id001"."""

  def ignore_aliases(self, data: Any) -> bool:
    return True


def _pod_rules() -> list[dict]:
  """Failures of pods that a rule of the JobSet is for; all others count as restarts."""
  return [
    {
      "action": "FailJob",
      "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    },
    {
      "action": "FailJob",
      "onExitCodes": {
        "containerName": CONTAINER,  # without it, a sidecar's exit would count
        "operator": "In",
        "values": [errors.UserError.status, SAVED_AND_ENDED],
      },
    },
  ]


def _pod(job: jobs.Job, labels: dict[str, str]) -> dict:
  chips = job.accelerator
  selector = {**chips.selector, **job.node_selector}
  tolerations = [
    {"key": chips.resource, "operator": "Exists", "effect": "NoSchedule"},
  ]
  if job.spot:
    selector[SPOT] = "true"
    tolerations.append(
      {"key": SPOT, "operator": "Equal", "value": "true", "effect": "NoSchedule"}
    )
  fabric, annotations = _fabric(job), {}
  if job.mounts:
    # The sidecar that mounts may take what it needs: a training host has plenty.
    annotations = {
      "gke-gcsfuse/volumes": "true",
      "gke-gcsfuse/cpu-limit": "0",
      "gke-gcsfuse/memory-limit": "0",
      "gke-gcsfuse/ephemeral-storage-limit": "0",
    }
  annotations |= fabric.annotations
  sidecars = fabric.sidecars(job.tcpxo_daemon)
  return {
    "metadata": {
      "labels": labels,
      **({"annotations": annotations} if annotations else {}),
    },
    "spec": {
      "restartPolicy": "Never",
      "terminationGracePeriodSeconds": job.grace_seconds,
      "serviceAccountName": job.service_account,
      "nodeSelector": selector,
      "tolerations": tolerations,
      **({"initContainers": sidecars} if sidecars else {}),
      "containers": [_container(job)],
      "volumes": [
        # Input workers hand batches over in shared memory; 64 MB is what pods have.
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
        *fabric.volumes,
        *(_volume(i, mount) for i, mount in enumerate(job.mounts)),
      ],
    },
  }


def _container(job: jobs.Job) -> dict:
  chips, fabric = job.accelerator, _fabric(job)
  # "$(" would be replaced by a variable's value.
  command = [part.replace("$(", "$$(") for part in job.command]
  container = {
    "name": CONTAINER,
    "image": job.image,
    "command": fabric.command([*command, *_peers(job)]),
    "env": [
      {"name": name, "value": value.replace("$(", "$$(")}
      for name, value in {**_own_env(job), **fabric.env, **job.env}.items()
    ],
    "resources": {
      "limits": {chips.resource: chips.chips_per_host},
      "requests": chips.requests,
    },
    "volumeMounts": [
      {"name": "shm", "mountPath": "/dev/shm"},
      *fabric.mounts,
      *(
        {"name": f"bucket-{i}", "mountPath": m.path, "readOnly": m.read_only}
        for i, m in enumerate(job.mounts)
      ),
    ],
  }
  # The same in all pods of the run, and no other's.
  field = "metadata.labels['jobset.sigs.k8s.io/jobset-uid']"
  container["env"] += [
    {"name": rendezvous.SECRET, "valueFrom": {"fieldRef": {"fieldPath": field}}},
    *(
      {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
      for name, (secret, key) in job.secret_env.items()
    ),
  ]
  if chips.is_tpu:
    # Their driver locks memory for the chips' direct access, without limit.
    container["securityContext"] = {"privileged": True, "runAsUser": 0}
    # TPU hosts among themselves, slices among themselves, and GKE's metrics of TPUs.
    container["ports"] = [{"containerPort": port} for port in (8471, 8080, 8431)]
  elif fabric.name:
    container["securityContext"] = {"runAsUser": 0}  # as Google's own manifests do
  return container


def _fabric(job: jobs.Job) -> gpudirect.Fabric:
  chips = job.accelerator
  return gpudirect.of(chips.machine, hosts=chips.hosts, wanted=job.gpudirect)


def _own_env(job: jobs.Job) -> dict[str, str]:
  env = {"PYTHONUNBUFFERED": "1"}
  if not job.accelerator.is_tpu:
    env["LD_LIBRARY_PATH"] = gpudirect.LIBRARIES  # GKE mounts the driver there
  return env


def _peers(job: jobs.Job) -> list[str]:
  """Flags by which the processes of a run find each other.

  TPUs need none: GKE sets TPU_WORKER_ID, TPU_WORKER_HOSTNAMES and, with several slices,
  MEGASCALE_* in each of their pods.
  """
  hosts = job.accelerator.hosts
  if job.accelerator.is_tpu or hosts == 1:
    return []
  first = f"{job.name}-{REPLICATED_JOB}-0-0.{job.name}"
  return [
    f"--coordinator={first}:{COORDINATOR_PORT}",
    f"--num_processes={hosts}",
    "--process_id=$(JOB_COMPLETION_INDEX)",
  ]


def _volume(number: int, mount: buckets.Mount) -> dict:
  return {
    "name": f"bucket-{number}",
    "csi": {
      "driver": "gcsfuse.csi.storage.gke.io",
      "readOnly": mount.read_only,
      "volumeAttributes": {
        "bucketName": mount.bucket,
        "mountOptions": mount.options,
      },
    },
  }
