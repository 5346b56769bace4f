"""Requirements of a job on its cluster, a line each: nothing of it is checked."""

from launch import buckets, gpudirect, jobs

SPOT_SECONDS = 15  # GKE documentation, "Spot VMs": for pods that are not the system's


def of(job: jobs.Job, config) -> list[str]:
  """Notes on a job, and on what of its config a pod will not find."""
  chips = job.accelerator
  pools = f"{job.slices} node pools" if job.slices > 1 else "a node pool"
  each = " each" if job.slices > 1 else ""
  topology = f" with topology {chips.topology}" if chips.is_tpu else ""
  many = f"{chips.hosts} {chips.machine}{topology}"
  notes = [
    f"the cluster needs JobSet 0.10.1 or newer, {pools} of {many}{each} (or"
    f" autoscaling, and quota for {chips.chips * job.slices} chips)"
  ]
  if job.queue:
    notes[0] += f", and Kueue with a LocalQueue {job.queue} in {job.namespace}"
  writers = sorted({mount.bucket for mount in job.mounts if not mount.read_only})
  readers = sorted({mount.bucket for mount in job.mounts if mount.read_only})
  roles = [f"roles/storage.objectUser on gs://{bucket}" for bucket in writers]
  roles += [f"roles/storage.objectViewer on gs://{bucket}" for bucket in readers]
  account = f"{job.namespace}/{job.service_account}"
  notes.append(
    "it needs to be a Standard cluster with the Cloud Storage FUSE driver, and service"
    f" account {account} by workload identity {', '.join(roles)}"
  )
  notes.append(
    f"{' and '.join(f'gs://{bucket}' for bucket in writers)} should have uniform"
    " access and a hierarchical namespace: a checkpoint's folder is then renamed at"
    " once, and not file by file"
  )
  if chips.is_tpu:
    notes.append(
      f"pods with TPUs run privileged, which policies of namespace {job.namespace} must"
      " allow"
    )
  elif chips.hosts > 1:
    notes.append(_network(job))
  if job.spot and job.grace_seconds > SPOT_SECONDS:
    notes.append(
      f"Spot VMs end some {SPOT_SECONDS} s after SIGTERM, also with --grace_seconds="
      f"{job.grace_seconds}: a save that takes longer is lost, with the steps"
      f" since the last of every {config.checkpoint.every}, and the restart may count"
      f" towards --max_restarts={job.max_restarts}"
    )
  return notes + _strangers(job, config)


def _network(job: jobs.Job) -> str:
  """What several hosts of GPUs need to talk to each other at full speed."""
  machine = job.accelerator.machine
  fabric = gpudirect.of(machine, hosts=job.accelerator.hosts, wanted=job.gpudirect)
  if not fabric.name:
    return (
      f"these {machine} nodes talk over the ordinary network, far slower than their own"
      " network cards could"
    )
  paired = f", of a release that goes with --tcpxo_daemon={job.tcpxo_daemon}"
  return (
    f"{machine} nodes talk by {fabric.name}: the cluster needs multi-networking,"
    f" Network objects {fabric.networks[0]} to {fabric.networks[-1]}, and DaemonSet"
    f" {' and '.join(fabric.daemon_sets)}{paired if fabric.has_daemon else ''};"
    " --nogpudirect does without, far slower"
  )


def _strangers(job: jobs.Job, config) -> list[str]:
  """Notes on data that are neither in a bucket nor part of the package."""
  notes = []
  named = {
    **{f"data.sources[{i}]": s for i, s in enumerate(config.data.sources)},
    **({f"knn.{part}": config.knn[part] for part in ("train", "test")}),
    "init.backbone": config.init.backbone,
  }
  for field, value in named.items():
    if field.startswith("knn.") and not config.knn.every:
      continue
    if value.startswith("tfds:"):
      if "TFDS_DATA_DIR" not in job.env:
        notes.append(
          f"config.{field}={value} is looked for in the image; for a bucket give"
          " --env=TFDS_DATA_DIR=gs://BUCKET/PATH"
        )
    elif (
      value and not value.startswith("embedded:") and not buckets.BUCKET.search(value)
    ):
      notes.append(
        f"config.{field}={value} is a path in the image; give gs://BUCKET/PATH for data"
        " in a bucket"
      )
  return notes
