"""The losses of a step in float64 NumPy, from the networks' outputs alone.

Written from the method's text: explicit pairs, crops and neighbours, no batched trick.
"""

import functools

import jax
import numpy as np

MEAN, STD = (0.43, 0.41, 0.3), (0.21, 0.16, 0.14)  # of images, not the usual ones


def softmax(z):
  e = np.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def sinkhorn(z, temp):
  q = np.exp((z - z.max()) / temp)
  q /= q.sum()
  for _ in range(3):
    q /= q.sum(0, keepdims=True) * q.shape[1]
    q /= q.sum(1, keepdims=True) * q.shape[0]
  return q * q.shape[0]


def cross_entropy(target, z):
  return -(target * np.log(softmax(z / 0.1))).sum()


@functools.partial(jax.jit, static_argnums=0)
def apply(module, params, *inputs):
  """module.apply, one program for all that see inputs of a shape."""
  return module.apply({"params": params}, *inputs)


class Seen:
  """Outputs of student or teacher, each crop position by itself, in float64."""

  def __init__(self, nets, params, crops, masks, pool):
    dino_head = params["dino_head"]
    ibot_head = params.get("ibot_head", dino_head)
    pixels = ((crops / 255 - np.array(MEAN)) / STD).astype(np.float32)
    features = [
      jax.device_get(
        apply(nets.backbone, params["backbone"], (pixels[:, v],), (masks[:, v],))[0]
      )
      for v in range(crops.shape[1])
    ]
    of_pool = {"cls": lambda f: f.cls, "gap": lambda f: f.patches.mean(1)}[pool]
    self.image = np.stack([np.float64(of_pool(f)) for f in features], 1)  # [B, V, D]
    logits = apply(nets.dino_head, dino_head, np.float32(self.image))
    self.logits = np.float64(logits)  # [B, V, K]
    patches = np.stack([f.patches for f in features], 1)
    logits = apply(nets.ibot_head, ibot_head, patches)
    self.patch_logits = np.float64(logits)  # [B, V, N, K]


def losses(*, nets, state, batch, config, temp, teacher=None, hidden=True):
  """Every part of the loss from the networks' outputs, pair by pair.

  teacher: (networks, parameters) if it has others. hidden: whether masks hide patches.
  """
  pool, b = config.backbone.pool, len(batch["mask"])
  whole = np.zeros_like(batch["mask"])
  teacher = teacher or (nets, state.teacher)
  teacher = Seen(*teacher, batch["global_crops"], whole, pool)
  masks = batch["mask"] if hidden else whole
  student = Seen(nets, state.student, batch["global_crops"], masks, pool)
  whole = np.zeros((b, 8, 4), bool)
  local = Seen(nets, state.student, batch["local_crops"], whole, pool)

  def assign(name, rows):
    if config.losses.targets == "sinkhorn":
      return sinkhorn(rows, temp)
    return softmax((rows - state.centers[name]) / temp)

  dino_targets = assign("dino", teacher.logits.reshape(2 * b, -1)).reshape(b, 2, -1)
  total = 0
  for image in range(b):
    crops = [*student.logits[image], *local.logits[image]]
    pairs = [(s, t) for s in range(10) for t in range(2) if s != t]
    assert len(pairs) == 18
    for s, t in pairs:
      total += cross_entropy(dino_targets[image, t], crops[s]) / (18 * b)

  ibot_targets = assign("ibot", teacher.patch_logits[batch["mask"]])
  hidden, ibot = list(np.argwhere(batch["mask"])), 0
  for image in range(b):
    for view in range(2):
      terms = [
        cross_entropy(ibot_targets[row], student.patch_logits[image, view, patch])
        for row, (i, v, patch) in enumerate(hidden)
        if (i, v) == (image, view)
      ]
      ibot += np.mean(terms) / (2 * b) if terms else 0

  koleo = 0
  for view in range(2):
    unit = student.image[:, view]
    unit = unit / np.linalg.norm(unit, axis=-1, keepdims=True)
    for i in range(b):
      g = config.group_size
      others = [j for j in range(b) if j // g == i // g and j != i]
      nearest = min(np.linalg.norm(unit[i] - unit[j]) for j in others)
      koleo -= np.log(nearest + 1e-8) / b
  return {
    "loss": total + ibot + 0.1 * koleo,
    "loss_dino": total,
    "loss_ibot": ibot,
    "loss_koleo": koleo,
    "teacher_entropy": -np.mean(np.sum(dino_targets * np.log(dino_targets), -1)),
  }
