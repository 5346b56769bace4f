"""The backbone within a checkpoint: prefixes taken off, other parts left aside.

Training code wraps a backbone's names: "module." (DataParallel), "_orig_mod."
(torch.compile), "teacher.backbone." (DINOv2), "dinov2." (a classifier of transformers),
{"model": ..., "optimizer": ...}. The array called cls_token shows where it is.
"""

import collections
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from dinojax import errors
from dinojax.reporting import console
from dinojax.weights import files, json_objects

# Where a backbone's names begin, by naming; the longer one first, as it ends like the
# other.
MARKS = {"huggingface": "embeddings.cls_token", "released": "cls_token"}
HEADS = ("dino_head", "ibot_head")
# Wrappers that add a word to names, and nothing else: DataParallel, torch.compile,
# FSDP, activation checkpointing.
WORDS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Classifiers among a backbone's own names: of timm, transformers, DINOv2, torchvision.
CLASSIFIERS = ("head", "classifier", "linear_head", "fc")
CHUNKED = re.compile(r"\bblocks\.\d+\.(\d+)\.")
# How weight norm is named since PyTorch 2: gain and direction.
PARAMETRIZED = {
  "parametrizations.weight.original0": "weight_g",
  "parametrizations.weight.original1": "weight_v",
}
SHOWN = 6  # names in a message


class Part(NamedTuple):
  """A backbone, or a head.

  prefix: what stood before its names. arrays: by their names without it.
  """

  prefix: str
  arrays: dict[str, files.Stored]


def find(
  arrays: Mapping[str, files.Stored], others: Iterable[str], path: str
) -> tuple[str, dict[str, Part]]:
  """The backbone of a checkpoint, its teacher's if there are two, and that one's heads.

  Prints one line on stderr if anything else is in the file.

  Args:
    arrays: of the file, all of them.
    others: names of what in the file is no array.
    path: for messages.

  Returns:
    The naming, a key of MARKS, and {"backbone": Part}, with "dino_head" and "ibot_head"
    where they stand beside it.

  Raises:
    UserError: there is no backbone, or more than one.
  """
  arrays = _plain_names(arrays, path)
  prefix, naming = _choose(arrays, path)
  owner = prefix.removesuffix("backbone.")
  prefixes = {"backbone": prefix}
  if owner != prefix:
    prefixes |= {head: f"{owner}{head}." for head in HEADS}
  parts = {name: Part(before, {}) for name, before in prefixes.items()}
  aside = []
  for name, array in arrays.items():
    part = next((p for p in parts.values() if name.startswith(p.prefix)), None)
    local = part and name.removeprefix(part.prefix)
    if part is None or local.split(".")[0] in CLASSIFIERS:
      aside.append(name)
    else:
      part.arrays[local] = array
  if aside or others:
    at = f' at "{prefix.rstrip(".")}"' if prefix else ""
    names = _summary(aside, others, prefix)
    line = f"{path}: reads the backbone{at}; left aside: {names}"
    console.say(errors.printable(line))
  return naming, {name: part for name, part in parts.items() if part.arrays}


def _plain_names(arrays: Mapping, path: str) -> dict[str, files.Stored]:
  """Arrays by names without WORDS and chunks of blocks, weight norm in older words."""
  plain, origin = {}, {}
  for name, array in arrays.items():
    new = ".".join(word for word in name.split(".") if word not in WORDS)
    for found, older in PARAMETRIZED.items():
      new = new.replace(found, older)
    new = CHUNKED.sub(r"blocks.\1.", new)
    if new in plain:
      raise errors.UserError(
        f"{path} holds {new} twice, as {json_objects.shown(origin[new])} and"
        f" {json_objects.shown(name)}; keep one of them"
      )
    plain[new], origin[new] = array, name
  return plain


def _choose(arrays: Mapping, path: str) -> tuple[str, str]:
  """(prefix, naming) of the backbone to read."""
  found = {}
  for name in arrays:
    for naming, mark in MARKS.items():
      if name == mark or name.endswith(f".{mark}"):
        found[name.removesuffix(mark)] = naming
        break
  if not found:
    raise errors.UserError(_nothing_found(arrays, path))
  chosen = list(found)
  for words, wanted in (({"teacher", "ema"}, True), ({"student"}, False)):
    chosen = [p for p in chosen if _has_word(p, words) is wanted] or chosen
  if len(chosen) > 1:
    names = ", ".join(json_objects.shown(prefix) for prefix in chosen[:SHOWN])
    raise errors.UserError(
      f"{path} holds {len(chosen)} backbones, with names after {names}; keep the names"
      f" after one of them: torch.save({{k: x for k, x in arrays.items() if"
      f" k.startswith({json_objects.shown(chosen[0])})}}, PATH)"
    )
  return chosen[0], found[chosen[0]]


def _has_word(prefix: str, words: set[str]) -> bool:
  return not words.isdisjoint(re.split(r"[._]", prefix))


def _nothing_found(arrays: Mapping, path: str) -> str:
  """The message for a file without a backbone."""
  if any("flat_param" in name.split(".")[-1] for name in arrays):
    return (
      f"{path} holds one process's shard of a training run (FSDP's flat_param); give"
      " the teacher that the run has written whole, eval/*/teacher_checkpoint.pth"
    )
  some = ", ".join(map(json_objects.shown, list(arrays)[:3])) or "nothing"
  return (
    f"{path} holds no DINOv2 backbone: there is no cls_token, but {some} ...; give a"
    " backbone's file, a training run's teacher, or a Dinov2Model"
  )


def _summary(aside: list[str], others: Iterable[str], prefix: str) -> str:
  """Names in few words: 'optimizer, model.student (174 arrays), epoch'."""
  counts = collections.Counter(_branch(name, prefix) for name in aside)
  texts = [
    name if count == 1 else f"{name} ({count} arrays)" for name, count in counts.items()
  ]
  texts += sorted({_branch(name, prefix) for name in others} - counts.keys())
  more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
  return ", ".join(texts[:SHOWN]) + more


def _branch(name: str, prefix: str) -> str:
  """A name up to where it leaves the path to the backbone."""
  words, path = name.split("."), prefix.split(".")
  shared = 0
  while shared < min(len(words) - 1, len(path)) and words[shared] == path[shared]:
    shared += 1
  return ".".join(words[: shared + 1])
