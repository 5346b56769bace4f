r"""Trains on a GKE cluster, as one JobSet.

  python launch/gke.py --config=experiments/vitg14.py --accelerator=v5p-128 \
    --image=REGISTRY/dinojax:TAG --workdir=gs://BUCKET/runs/vitg14 [--config.x=y ...]
  python launch/gke.py status NAME
  python launch/gke.py logs NAME [--process=0] [--follow]
  python launch/gke.py stop NAME
  python launch/gke.py accelerators

Without a verb it submits; --dry_run prints the manifest instead, as kubectl apply -f
takes it. The config is checked here first, for as many devices as the accelerator has.

Accelerators count chips: v5p-128 is 128 chips of TPU v5p, 4x4x8, 32 hosts of 4
(Google's own v5p-N counts TensorCores, two a chip); h200-128 is 16 nodes of 8 GPUs. The
verb accelerators lists them.

Buckets are mounted in the pods by Cloud Storage FUSE: the workdir's at
/gcs/workdir/BUCKET, and for every other gs:// of the config (arrayrecord:gs://BUCKET/*,
config.init.backbone) or of --env its bucket at /gcs/data/BUCKET, to be read. The pods'
service account needs the rights, by workload identity.

A preempted run saves, and is restarted without limit; one that hangs or loses a host is
restarted --max_restarts times; after a user error or a bug it is not. The same command
resumes from the newest checkpoint.
"""

import pathlib
import shlex
import sys

if __package__ in (None, ""):  # run as a file, not imported: the project is its parent
  sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)
  from dinojax.runtime import signals

  signals.end_at_once()

from absl import app, flags
from ml_collections import config_flags

from dinojax import errors
from dinojax.commands import mistakes, parsing
from dinojax.runtime import signals
from launch import accelerators, jobs, jobset, requirements

CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment file to run.")
ACCELERATOR = flags.DEFINE_string("accelerator", None, "Such as v5p-128, in chips.")
SLICES = flags.DEFINE_integer("slices", 1, "TPU slices, joined over the network.")
IMAGE = flags.DEFINE_string("image", "", "Container image with this project in it.")
WORKDIR = flags.DEFINE_string("workdir", "", "gs://BUCKET/PATH of the run.")
NAME = flags.DEFINE_string("name", "", "Of the job; default: experiment-accelerator.")
NAMESPACE = flags.DEFINE_string("namespace", "default", "Of the cluster.")
CONTEXT = flags.DEFINE_string("context", "", "Of the kubeconfig; default: current one.")
SERVICE_ACCOUNT = flags.DEFINE_string(
  "service_account", "default", "Of Kubernetes, with rights to the buckets."
)
QUEUE = flags.DEFINE_string("queue", "", "Kueue's LocalQueue; default: none.")
SPOT = flags.DEFINE_bool("spot", False, "Run on Spot VMs.")
EXCLUSIVE = flags.DEFINE_bool(
  "exclusive_topology", True, "A slice, or all GPU nodes, in one node pool alone."
)
NODE_SELECTOR = flags.DEFINE_multi_string(
  "node_selector", [], "LABEL=VALUE of the nodes to run on, such as a reservation's."
)
MAX_RESTARTS = flags.DEFINE_integer(
  "max_restarts", 10, "After failures; preemptions don't count.", lower_bound=0
)
GRACE_SECONDS = flags.DEFINE_integer(
  "grace_seconds", 600, "To save in, between SIGTERM and SIGKILL.", lower_bound=1
)
GPUDIRECT = flags.DEFINE_bool(
  "gpudirect", True, "Several H200 or H100 Mega nodes talk over their GPUs' own cards."
)
TCPXO_DAEMON = flags.DEFINE_string(
  "tcpxo_daemon", jobs.TCPXO_DAEMON, "Of H100 Mega: the tag that goes with the plugin."
)
ENV = flags.DEFINE_multi_string("env", [], "NAME=VALUE for the pods; no secrets.")
SECRET_ENV = flags.DEFINE_multi_string(
  "secret_env", [], "NAME=SECRET:KEY: a key of a Kubernetes secret for the pods."
)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the manifest, submit nothing.")
TIMEOUT = flags.DEFINE_float(
  "timeout", 30, "Seconds for an answer of the cluster.", lower_bound=0.1
)
PROCESS = flags.DEFINE_integer("process", 0, "Of which process the log is, from 0.")
FOLLOW = flags.DEFINE_bool("follow", False, "Wait for more of the log.")

VERBS = ("submit", "status", "logs", "stop", "accelerators")


def make_job(config, overrides: dict, *, name="", workdir="") -> jobs.Job:
  """The job of a config that the flags ask for, or with another name and workdir."""
  if "workdir" in overrides:
    raise errors.UserError(
      "--config.workdir is what --workdir=gs://... sets; give that"
    )
  if not ACCELERATOR.value:
    raise errors.UserError(
      "--accelerator=NAME is missing, such as v5p-128; python launch/gke.py"
      " accelerators lists them"
    )
  return jobs.make(
    config,
    config_file=config_flags.get_config_filename(flags.FLAGS["config"]),
    overrides=overrides,
    accelerator=ACCELERATOR.value,
    image=IMAGE.value,
    workdir=workdir or WORKDIR.value,
    name=name or NAME.value,
    slices=SLICES.value,
    env=jobs.pairs(ENV.value, flag="env", form="NAME=VALUE"),
    secret_env=jobs.secrets(SECRET_ENV.value),
    namespace=NAMESPACE.value,
    service_account=SERVICE_ACCOUNT.value,
    queue=QUEUE.value,
    spot=SPOT.value,
    node_selector=jobs.pairs(
      NODE_SELECTOR.value, flag="node_selector", form="LABEL=VALUE"
    ),
    exclusive_topology=EXCLUSIVE.value,
    max_restarts=MAX_RESTARTS.value,
    grace_seconds=GRACE_SECONDS.value,
    gpudirect=GPUDIRECT.value,
    tcpxo_daemon=TCPXO_DAEMON.value,
  )


def submit(argv: list[str]) -> None:
  """Prints the manifest, or creates the job and lists the commands for it."""
  job = make_job(CONFIG.value, config_flags.get_override_values(flags.FLAGS["config"]))
  cluster = None if DRY_RUN.value else open_cluster()
  print_notes(job, CONFIG.value)
  manifest = jobset.render(job)
  if DRY_RUN.value:
    print(jobset.to_yaml(manifest), end="", flush=True)
    print_next(["python", "launch/gke.py", *argv[1:]])
    return
  cluster.submit(manifest)
  here = "" if NAMESPACE.value == "default" else f" --namespace={NAMESPACE.value}"
  chips = job.accelerator.chips * job.slices
  print(
    f"{job.name} is submitted: {chips} chips on {job.accelerator.hosts * job.slices}"
    f" hosts\n  python launch/gke.py status {job.name}{here}"
    f"\n  python launch/gke.py logs {job.name}{here} --follow"
    f"\n  python launch/gke.py stop {job.name}{here}"
  )


def print_notes(job: jobs.Job, config) -> None:
  """Prints on stderr what a job needs; first of all a cluster, where none is known."""
  lines = requirements.of(job, config)
  if DRY_RUN.value:
    try:
      open_cluster()
    except errors.UserError as error:
      lines = [f"before this job can be submitted: {error}", *lines]
  for line in lines:
    print(f"note: {line}", file=sys.stderr)


def print_next(command: list[str]) -> None:
  """Prints on stderr the command that does what --dry_run shows."""
  words = [word for word in command if not word.lstrip("-").startswith("dry_run")]
  print(f"next: {shlex.join(words)}", file=sys.stderr)


def open_cluster():
  """The cluster of the flags; a machine that only prints manifests has no client."""
  try:
    from launch import cluster
  except ModuleNotFoundError as error:
    raise errors.UserError(f"{error}; pip install -e '.[launch]'") from error
  return cluster.Cluster(
    namespace=NAMESPACE.value, context=CONTEXT.value, timeout=TIMEOUT.value
  )


def main(argv: list[str]) -> None:
  """Runs the verb."""
  verb, *names = argv[1:] or ["submit"]
  if verb in ("submit", "accelerators") and names:
    raise errors.UserError(f"{names[0]!r} is no option; options start with --")
  if verb == "submit":
    submit(sys.argv)
  elif verb == "accelerators":
    print(accelerators.table())
  elif len(names) != 1:
    raise errors.UserError(f"{verb} needs the name of one job: {verb} NAME")
  else:
    manage(verb, jobs.valid_name(names[0]))


def manage(verb: str, name: str) -> None:
  """Prints the status or the log of a job, or ends it."""
  cluster = open_cluster()
  if verb == "status":
    print(cluster.status(name))
  elif verb == "logs":
    for line in cluster.logs(name, process=PROCESS.value, follow=FOLLOW.value):
      print(line, flush=True)
  else:
    cluster.stop(name)
    print(
      f"{name} is stopping: its pods save and end. The command that submitted it"
      " resumes from there"
    )


def parse(argv: list[str]) -> list[str]:
  """Flags, verb and, to submit, the config; what is wrong becomes one line."""
  rest = parsing.parse_flags(argv)
  verb = rest[1] if len(rest) > 1 else "submit"
  if verb not in VERBS:
    raise errors.UserError(f"{verb!r} is no verb; there are {', '.join(VERBS)}")
  if verb == "submit" and flags.FLAGS.config is None:
    raise errors.UserError("--config=FILE is missing; try experiments/vitg14.py")
  if verb == "submit":
    with mistakes.explained():
      _ = flags.FLAGS.config.workdir  # a file that cannot be loaded shows only now
  return rest


if __name__ == "__main__":
  signals.end_in_order()
  try:
    app.run(main, flags_parser=parse)
  except errors.UserError as error:
    sys.exit(f"dinojax: {errors.printable(str(error))}")
  except signals.Interrupted:
    print("dinojax: interrupted; a job that runs continues", file=sys.stderr)
    sys.exit(signals.status())
  except BrokenPipeError:
    sys.exit(1)
