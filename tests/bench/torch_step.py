"""The same training step in plain PyTorch, for step.py to time beside ours.

Written from the method, as one would write it for one device: float32 weights under
bfloat16 autocast, scaled_dot_product_attention, fused AdamW, foreach EMA, and blocks,
heads and losses under torch.compile. It reads the same config and the same host batch;
tests/torch_step_test.py holds its losses to ours. Logits leave autocast in bfloat16,
where ours are kept in float32: that is PyTorch's habit, and cheaper.

Dimension key: as in dinojax/dino.py. R are the masked patches of the whole batch.
"""

import copy
import functools
import math

import torch
import torch.nn.functional as F
import torch_vit
from torch import nn

CENTER_MOMENTUM = 0.9


def sinkhorn_knopp(logits, temp):
  """[rows, K] -> the same; only the two scaling vectors change, as in ours."""
  scores = torch.exp((logits.float() - logits.max()) / temp)
  per_sample = torch.ones(len(logits), device=logits.device)
  share = logits.shape[0] / logits.shape[1]
  for _ in range(3):
    per_prototype = share / (per_sample @ scores)
    per_sample = 1 / (scores @ per_prototype)
  return scores * per_sample[:, None] * per_prototype


def centered_softmax(logits, center, temp):
  return F.softmax((logits.float() - center) / temp, -1)


def cross_entropy(logits, targets, temp):
  return -(targets * F.log_softmax(logits.float() / temp, -1)).sum(-1)


def koleo(features):
  """[G, g, D] -> mean -log distance to the nearest of the same group."""
  with torch.autocast(features.device.type, enabled=False):
    x = F.normalize(features.float(), dim=-1, eps=1e-8)
    with torch.no_grad():
      self_pair = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
      nearest = (x @ x.mT).masked_fill(self_pair, -torch.inf).argmax(-1)
    neighbours = x.take_along_dim(nearest[..., None], 1)
    return -torch.log(F.pairwise_distance(x, neighbours, eps=1e-8) + 1e-8).mean()


def schedule_values(config, step):
  """Learning rate, weight decay, teacher momentum and temperature of a step."""
  s, total = config.schedules, config.total_steps

  def cosine(start, final, done):
    return final + (start - final) * (1 + math.cos(math.pi * min(done, 1))) / 2

  rate, temp = s.learning_rate, s.teacher_temp
  warm = rate.warmup_steps
  learning_rate = cosine(rate.peak, rate.final, max(step - warm, 0) / (total - warm))
  if step < warm:
    learning_rate = rate.peak * step / warm
  done = min(step / temp.warmup_steps, 1) if temp.warmup_steps else 1
  return {
    "learning_rate": learning_rate,
    "weight_decay": cosine(**s.weight_decay, done=step / total),
    "teacher_momentum": cosine(**s.teacher_momentum, done=step / total),
    "teacher_temp": temp.start + (temp.final - temp.start) * done,
  }


def parameter_groups(student, *, depth, layer_decay, patch_embed_lr_scale):
  """AdamW groups: equal learning-rate scale, decayed or not, prototypes or not."""
  groups = {}
  for name, parameter in student.named_parameters():
    parts, scale = name.split("."), 1.0
    if parts[1] == "blocks":
      scale = layer_decay ** (depth - int(parts[2]))
    elif parts[0] == "backbone" and parts[1] != "norm":
      scale = layer_decay ** (depth + 1)
      scale *= patch_embed_lr_scale if parts[1] == "patch_embed" else 1
    still = parts[-1] in ("bias", "gamma1", "gamma2") or "norm" in parts[-2]
    key = dict(scale=scale, decayed=not still, prototypes="prototypes" in parts)
    group = groups.setdefault(tuple(key.values()), dict(key, params=[]))
    group["params"].append(parameter)
  return list(groups.values())


class TrainStep:
  """Student, teacher, optimiser and centers; each call is one update."""

  def __init__(self, config, *, device, compiled):
    self.config, self.device, self.steps = config, torch.device(device), 0
    width = config.backbone.width
    head = {k: torch_vit.DINOHead(width, **v) for k, v in config.heads.items()}
    networks = {
      "backbone": torch_vit.VisionTransformer(config),
      "dino_head": head["dino"],
    }
    if "ibot" in head:
      networks["ibot_head"] = head["ibot"]
    self.student = nn.ModuleDict(networks).to(device)
    self.teacher = copy.deepcopy(self.student).eval().requires_grad_(False)
    self.centers = {
      name: torch.zeros(config.heads.get(name, config.heads.dino).prototypes).to(device)
      for name in ("dino", "ibot")
      if config.losses.targets == "centering"
    }
    opt = config.optimizer
    groups = parameter_groups(
      self.student,
      depth=config.backbone.depth,
      layer_decay=opt.layer_decay,
      patch_embed_lr_scale=opt.patch_embed_lr_scale,
    )
    betas = (opt.b1, opt.b2)
    self.optimizer = torch.optim.AdamW(groups, betas=betas, eps=opt.eps, fused=True)
    # Blocks alike share one graph per resolution, so compile time ignores the depth.
    wrap = functools.partial(torch.compile, dynamic=False) if compiled else lambda f: f
    self.sinkhorn_knopp, self.koleo = wrap(sinkhorn_knopp), wrap(koleo)
    self.centered_softmax = wrap(centered_softmax)
    self.cross_entropy = wrap(cross_entropy)
    for networks in (self.student, self.teacher) if compiled else ():
      for name, network in networks.items():
        for module in network.blocks if name == "backbone" else [network]:
          module.compile(dynamic=False)

  def put(self, batch):
    """The host batch on the device, its leading axes flattened."""
    groups, patches = len(batch["masked_indices"]), batch["mask"].size
    batch = {k: torch.from_numpy(v).to(self.device) for k, v in batch.items()}
    first = torch.arange(0, patches, patches // groups, device=self.device)
    batch["masked_indices"] = (first[:, None] + batch["masked_indices"]).flatten()
    batch["masked_weights"] = batch["masked_weights"].flatten()
    crops = ("global_crops", "local_crops", "mask")
    return batch | {name: batch[name].flatten(0, 1) for name in crops}

  def ibot_logits(self, networks, patches, batch):
    head = networks["ibot_head" if "ibot_head" in networks else "dino_head"]
    return head(patches.flatten(0, 1).index_select(0, batch["masked_indices"]))

  @torch.no_grad()
  def teacher_targets(self, batch, temp):
    """{"dino": [B*V, K], "ibot": [R, K]}; moves the centers, if there are any."""
    images, patches = self.teacher["backbone"](batch["global_crops"], None, 1)
    logits = {
      "dino": self.teacher["dino_head"](images),
      "ibot": self.ibot_logits(self.teacher, patches, batch),
    }
    if not self.centers:
      return {name: self.sinkhorn_knopp(z, temp) for name, z in logits.items()}
    targets = {}
    for name, z in logits.items():
      targets[name] = self.centered_softmax(z, self.centers[name], temp)
      self.centers[name].lerp_(z.float().mean(0), 1 - CENTER_MOMENTUM)
    return targets

  def student_loss(self, targets, batch):
    """The weighted sum of the losses, and its parts by name."""
    cfg, temp = self.config.losses, self.config.losses.student_temp
    b, views = self.config.data.batch_size, 2
    groups = b // self.config.group_size
    backbone = self.student["backbone"]
    seen, patches = backbone(batch["global_crops"], batch["mask"], groups)
    local, _ = backbone(batch["local_crops"], None, groups)
    seen, local = seen.unflatten(0, (b, -1)), local.unflatten(0, (b, -1))  # [B, V, D]
    logits = self.student["dino_head"](torch.cat([seen, local], 1))  # [B, V + L, K]
    wanted = targets["dino"].unflatten(0, (b, views))
    dino = self.cross_entropy(logits[:, :views], wanted.flip(1), temp).sum()
    both = wanted.sum(1, keepdim=True)
    dino = dino + self.cross_entropy(logits[:, views:], both, temp).sum()
    dino = dino / (b * views * (views - 1 + local.shape[1]))
    patch_ce = self.cross_entropy(
      self.ibot_logits(self.student, patches, batch), targets["ibot"], temp
    )
    ibot = (batch["masked_weights"] * patch_ce).sum() / (b * views)
    spread = sum(self.koleo(x.unflatten(0, (groups, -1))) for x in seen.unbind(1))
    loss = cfg.dino_weight * dino + cfg.ibot_weight * ibot + cfg.koleo_weight * spread
    return loss, dict(loss=loss, loss_dino=dino, loss_ibot=ibot, loss_koleo=spread)

  def __call__(self, batch):
    """One update on a batch of `put`; returns scalars, still on the device."""
    at = schedule_values(self.config, self.steps)
    mixed = self.config.backbone.dtype == "bfloat16"
    with torch.autocast(self.device.type, torch.bfloat16, enabled=mixed):
      temp = torch.tensor(at["teacher_temp"], device=self.device)  # a float recompiles
      targets = self.teacher_targets(batch, temp)
      loss, metrics = self.student_loss(targets, batch)
    self.optimizer.zero_grad()
    loss.backward()
    for name, network in self.student.items():
      norm = nn.utils.clip_grad_norm_(
        network.parameters(), self.config.optimizer.clip_norm
      )
      metrics[f"grad_norm_{name}"] = norm
    frozen = self.steps < self.config.optimizer.freeze_prototypes_steps
    for group in self.optimizer.param_groups:
      stands = frozen and group["prototypes"]
      group["lr"] = 0.0 if stands else at["learning_rate"] * group["scale"]
      group["weight_decay"] = at["weight_decay"] if group["decayed"] else 0.0
    self.optimizer.step()
    with torch.no_grad():
      pair = [list(networks.parameters()) for networks in (self.teacher, self.student)]
      torch._foreach_lerp_(*pair, 1 - at["teacher_momentum"])
    self.steps += 1
    entropy = torch.special.entr(targets["dino"]).sum(-1).mean()
    metrics = {name: value.detach() for name, value in metrics.items()}
    return {**metrics, "teacher_entropy": entropy}
