"""GPUDirect on GKE: what a pod needs for the network cards of its GPUs.

Each GPU of these machines has a card of its own, in a network of its own. NCCL talks
over them by a plugin of Google's, which a DaemonSet of the cluster puts on the nodes.
The pod asks for the networks, mounts the plugin, and sets NCCL's variables by the
plugin's own script before it trains; with TCPXO, a daemon beside it moves the data.

Sources: Google Cloud documentation, "Create a custom AI-optimized GKE cluster which
uses A4X" (the same as for A3 Ultra, but for the number of cards); of
GoogleCloudPlatform/container-engine-accelerators, as of 2026,
gpudirect-rdma/nccl-test.yaml and of gpudirect-tcpxo nccl-test-latest.yaml, README.md
and best-practice.md (sidecar, startup probe).
"""

import dataclasses
import json
from collections.abc import Sequence

LIBRARIES = "/usr/local/nvidia/lib64"  # of the driver, NCCL and, with TCPXO, its plugin
_ON_NODES = "/home/kubernetes/bin"
# Volume, path on the node, path in the container.
_DRIVER = ("nvidia", f"{_ON_NODES}/nvidia", "/usr/local/nvidia")
_DAEMON_PATHS = (("sys", "/sys", "/hostsysfs"), ("proc", "/proc/sys", "/hostprocsysfs"))
DAEMON = "tcpxo-daemon"
_DAEMON_IMAGE = "us-docker.pkg.dev/gce-ai-infra/gpudirect-tcpxo/tcpgpudmarxd-dev"
_DAEMON_READY = "/run/health-check"
_SCRIPT = (
  'test -r "$0" || { echo "$0 is missing on this node" >&2; exit 1; };'
  ' . "$0"; exec "$@"'
)


@dataclasses.dataclass(frozen=True)
class Fabric:
  """What a pod needs of one kind of GPUDirect; by default of none."""

  name: str = ""
  networks: tuple[str, ...] = ()  # Network objects, as Google's guides name them
  first_card: int = 0  # eth2 is the first of GPUDirect-RDMA
  daemon_sets: tuple[str, ...] = ()
  paths: tuple[tuple[str, str, str], ...] = ()
  script: str = ""  # sets NCCL's variables
  variables: tuple[tuple[str, str], ...] = ()
  has_daemon: bool = False

  @property
  def env(self) -> dict[str, str]:
    """Variables of the container that trains, which the script doesn't set."""
    return dict(self.variables)

  @property
  def annotations(self) -> dict[str, str]:
    """Of the pod: its networks, and the devices of the daemon; both as JSON."""
    if not self.networks:
      return {}
    cards = enumerate(self.networks, self.first_card)
    interfaces = [("eth0", "default"), *((f"eth{i}", name) for i, name in cards)]
    found = {
      "networking.gke.io/default-interface": "eth0",
      "networking.gke.io/interfaces": json.dumps(
        [{"interfaceName": card, "network": name} for card, name in interfaces]
      ),
    }
    if self.has_daemon:
      names = [*(f"nvidia{i}" for i in range(8)), "nvidiactl", "nvidia-uvm"]
      devices = [{"path": f"/dev/{x}"} for x in (*names, "dmabuf_import_helper")]
      found[f"devices.gke.io/container.{DAEMON}"] = json.dumps(devices)
    return found

  @property
  def volumes(self) -> list[dict]:
    """Of the pod, from its node."""
    return [
      {"name": name, "hostPath": {"path": node}}
      for name, node, _ in (*self.paths, *(_DAEMON_PATHS if self.has_daemon else ()))
    ]

  @property
  def mounts(self) -> list[dict]:
    """Of the container that trains."""
    return _mounts(self.paths)

  def command(self, command: Sequence[str]) -> list[str]:
    """The command, with NCCL's variables set; status 1 where the plugin is missing."""
    return ["bash", "-c", _SCRIPT, self.script, *command] if self.script else [*command]

  def sidecars(self, tag: str) -> list[dict]:
    """Containers that start before the one that trains, and end after it."""
    if not self.has_daemon:
      return []
    start = "/fts/entrypoint_rxdm_container.sh"
    daemon = {
      "name": DAEMON,
      "image": f"{_DAEMON_IMAGE}:{tag}",
      "restartPolicy": "Always",  # makes it a sidecar, which ends with the training
      "command": ["/bin/sh", "-c"],
      "args": [f"set -ex; chmod 755 {start}; {start} --num_hops=2 --num_nics=8"],
      "env": [
        {"name": "LD_LIBRARY_PATH", "value": LIBRARIES},
        {"name": "HEALTH_CHECK_LOG_FILE", "value": _DAEMON_READY},
      ],
      # It takes about 30 s to be ready; on a broken node it never is.
      "startupProbe": {
        "exec": {"command": ["cat", _DAEMON_READY]},
        "periodSeconds": 5,
        "failureThreshold": 36,
      },
      "securityContext": {"capabilities": {"add": ["NET_ADMIN", "NET_BIND_SERVICE"]}},
      "volumeMounts": _mounts((_DRIVER, *_DAEMON_PATHS)),
    }
    return [daemon]


_FABRICS = {  # by machine type
  "a3-ultragpu-8g": Fabric(
    name="GPUDirect-RDMA",
    networks=tuple(f"rdma-{i}" for i in range(8)),
    first_card=2,
    daemon_sets=("nccl-rdma-installer",),
    paths=(_DRIVER, ("gib", f"{_ON_NODES}/gib", "/usr/local/gib")),
    script="/usr/local/gib/scripts/set_nccl_env.sh",
  ),
  "a3-megagpu-8g": Fabric(
    name="GPUDirect-TCPXO",
    networks=tuple(f"vpc{i}" for i in range(1, 9)),
    first_card=1,
    daemon_sets=("nccl-tcpxo-installer", "nri-device-injector"),
    paths=(_DRIVER, ("aperture", "/dev/aperture_devices", "/dev/aperture_devices")),
    script=f"{LIBRARIES}/nccl-env-profile.sh",
    variables=(
      ("NCCL_LIB_DIR", LIBRARIES),
      ("NCCL_FASTRAK_LLCM_DEVICE_DIRECTORY", "/dev/aperture_devices"),
    ),
    has_daemon=True,
  ),
}


def of(machine: str, *, hosts: int, wanted: bool) -> Fabric:
  """The fabric of some hosts of a machine type; one host alone needs none."""
  if not wanted or hosts == 1:
    return Fabric()
  return _FABRICS.get(machine, Fabric())


def _mounts(paths: Sequence[tuple[str, str, str]]) -> list[dict]:
  return [{"name": name, "mountPath": path} for name, _, path in paths]
