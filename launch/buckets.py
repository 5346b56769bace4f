"""Buckets as folders: gs:// in a config becomes a path at which the bucket is mounted.

dinojax reads and writes folders. GKE's Cloud Storage FUSE driver mounts a bucket in
each pod, with the rights of the pod's service account: the bucket of the workdir
read-write, that of every other gs:// in the config or the environment read-only.

Sources: GKE documentation, "Cloud Storage FUSE CSI driver" (volume attributes);
Cloud Storage FUSE, docs/semantics.md and its configuration file (options).
"""

import dataclasses
import re
from typing import Any

from dinojax import errors

BUCKET = re.compile("gs://([^/]*)")
SHORTEST, LONGEST = 3, 222  # letters of a name


@dataclasses.dataclass(frozen=True, order=True)
class Mount:
  """A bucket at a path in the pods."""

  path: str
  bucket: str
  read_only: bool

  @property
  def options(self) -> str:
    """Options of Cloud Storage FUSE."""
    if self.read_only:
      # Data don't change under a run: what is known of a shard is known for good.
      return (
        "implicit-dirs,metadata-cache:ttl-secs:-1,"
        "metadata-cache:stat-cache-max-size-mb:-1,"
        "metadata-cache:type-cache-max-size-mb:-1"
      )
    # Hosts write to one checkpoint and must see what the others wrote. A checkpoint is
    # complete once its folder is renamed, which a bucket without a hierarchical
    # namespace does file by file, and by default not at all. An image may have any
    # user.
    return (
      "implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0,"
      "file-system:rename-dir-limit:200000,file-mode=666,dir-mode=777"
    )


def _what_is_wrong(name: str) -> str:
  """What keeps a name from being a bucket's; "" if nothing does."""
  if not name:
    return "follows gs://, as in gs://BUCKET/PATH"
  if not SHORTEST <= len(name) <= LONGEST:
    return f"has {SHORTEST} to {LONGEST} letters, and {name!r} has {len(name)}"
  if not re.fullmatch("[a-z0-9._-]+", name):
    return f"has a-z, 0-9, dots, dashes and underscores alone, unlike {name!r}"
  if not re.fullmatch("[a-z0-9].*[a-z0-9]", name):
    return f"begins and ends with a letter or a digit, unlike {name!r}"
  return ""


def mount(text: str, *, field: str, read_only: bool) -> tuple[str, set[Mount]]:
  """The text with a path for each gs://BUCKET in it, and what to mount for them."""
  mounts = set()

  def replace(match: re.Match) -> str:
    if wrong := _what_is_wrong(match[1]):
      raise errors.UserError(f"{field}={text!r}: a bucket's name {wrong}")
    root = f"/gcs/{'data' if read_only else 'workdir'}/{match[1]}"
    mounts.add(Mount(root, match[1], read_only))
    return root

  return BUCKET.sub(replace, text), mounts


def mount_all(value: Any, *, field: str) -> tuple[Any, set[Mount]]:
  """The same for a value of a config, which may hold several: read-only."""
  mounts = set()
  if isinstance(value, tuple | list):
    parts = [mount_all(v, field=f"{field}[{i}]") for i, v in enumerate(value)]
    value = type(value)(part for part, _ in parts)
    mounts.update(*(found for _, found in parts))
  elif isinstance(value, str):
    value, mounts = mount(value, field=field, read_only=True)
  return value, mounts


def mount_config(config: dict, *, prefix: str = "") -> tuple[dict, set[Mount]]:
  """{dotted path: new value} of the fields that name buckets, and what to mount."""
  fields, mounts = {}, set()
  for name, value in config.items():
    if isinstance(value, dict):
      inner, found = mount_config(value, prefix=f"{prefix}{name}.")
      fields |= inner
    else:
      new, found = mount_all(value, field=f"config.{prefix}{name}")
      if found:
        fields[f"{prefix}{name}"] = new
    mounts |= found
  return fields, mounts
