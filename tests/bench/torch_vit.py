"""Backbone and heads of torch_step.py: plain PyTorch modules of `config.backbone`."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils import checkpoint

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Attention(nn.Module):
  def __init__(self, width, heads):
    super().__init__()
    self.heads = heads
    self.qkv = nn.Linear(width, 3 * width)
    self.proj = nn.Linear(width, width)

  def forward(self, x):
    qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # [B, T, 3, heads, d]
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    out = F.scaled_dot_product_attention(query, key, value)  # [B, heads, T, d]
    return self.proj(out.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
  def __init__(self, width):
    super().__init__()
    self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

  def forward(self, x):
    return self.fc2(F.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
  def __init__(self, width):
    super().__init__()
    hidden = (int(4 * width * 2 / 3) + 7) // 8 * 8
    self.w12, self.w3 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

  def forward(self, x):
    gate, value = self.w12(x).chunk(2, -1)
    return self.w3(F.silu(gate) * value)


class Block(nn.Module):
  def __init__(self, *, width, heads, ffn, layerscale_init, drop_path, **_):
    super().__init__()
    self.drop_path = drop_path
    self.norm1 = nn.LayerNorm(width, eps=1e-6)
    self.norm2 = nn.LayerNorm(width, eps=1e-6)
    self.attn = Attention(width, heads)
    self.mlp = {"mlp": Mlp, "swiglu": SwiGLU}[ffn](width)
    self.gamma1 = nn.Parameter(torch.full((width,), layerscale_init))
    self.gamma2 = nn.Parameter(torch.full((width,), layerscale_init))

  def forward(self, x, groups):
    x = self.residual(x, groups, lambda y: self.gamma1 * self.attn(self.norm1(y)))
    return self.residual(x, groups, lambda y: self.gamma2 * self.mlp(self.norm2(y)))

  def residual(self, x, groups, branch):
    if not (self.training and self.drop_path):
      return x + branch(x)
    crops = len(x) // groups
    kept = max(int(crops * (1 - self.drop_path)), 1)
    order = torch.rand(groups, crops, device=x.device).argsort(-1)[:, :kept]
    first = torch.arange(0, len(x), crops, device=x.device)
    subset = (first[:, None] + order).flatten()
    delta = branch(x.index_select(0, subset))
    return x.index_add(0, subset, delta, alpha=crops / kept)


class VisionTransformer(nn.Module):
  def __init__(self, config):
    super().__init__()
    c, self.remat = config.backbone, config.remat != "none"
    self.grid, self.registers, self.pool = c.pos_grid, c.registers, c.pool
    self.mean = nn.Buffer(torch.tensor(MEAN))
    self.std = nn.Buffer(torch.tensor(STD))
    self.patch_embed = nn.Conv2d(3, c.width, c.patch_size, c.patch_size)
    self.mask_token = nn.Parameter(torch.zeros(1, c.width))
    self.cls_token = nn.Parameter(1e-6 * torch.randn(1, 1, c.width))
    self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + self.grid**2, c.width))
    if self.registers:
      self.register_tokens = nn.Parameter(1e-6 * torch.randn(1, c.registers, c.width))
    self.blocks = nn.ModuleList(Block(**c) for _ in range(c.depth))
    self.norm = nn.LayerNorm(c.width, eps=1e-6)
    self.apply(init_linear)

  def forward(self, images, mask, groups):
    """[B, S, S, 3] uint8, [B, N] bool or None -> [B, D] and [B, N, D]."""
    x = self.embed(images, mask)
    for block in self.blocks:
      if self.remat and self.training:
        x = checkpoint.checkpoint(block, x, groups, use_reentrant=False)
      else:
        x = block(x, groups)
    x = self.norm(x)
    patches = x[:, 1 + self.registers :]
    return (patches.mean(1) if self.pool == "gap" else x[:, 0]), patches

  def embed(self, images, mask):
    pixels = ((images / 255 - self.mean) / self.std).permute(0, 3, 1, 2)
    x = self.patch_embed(pixels)  # [B, D, rows, columns]
    size = x.shape[2:]
    x = x.flatten(2).transpose(1, 2)  # [B, N, D]
    if mask is not None:
      x = torch.where(mask[..., None], self.mask_token, x)
    x = x + self.positions(size)
    prefix = [self.cls_token + self.pos_embed[:, :1]]
    prefix += [self.register_tokens] if self.registers else []
    return torch.cat([*(t.expand(len(x), -1, -1) for t in prefix), x], 1)

  def positions(self, size):
    square = self.pos_embed[:, 1:].unflatten(1, (self.grid, self.grid))
    if size != (self.grid, self.grid):
      square = square.permute(0, 3, 1, 2)
      if self.registers:
        square = F.interpolate(square, size, mode="bicubic", antialias=True)
      else:
        scale = [(side + 0.1) / self.grid for side in size]
        square = F.interpolate(square, scale_factor=scale, mode="bicubic")
      square = square.permute(0, 2, 3, 1)
    return square.flatten(1, 2)


class DINOHead(nn.Module):
  def __init__(self, width, *, hidden, bottleneck, prototypes):
    super().__init__()
    self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, hidden)
    self.fc3 = nn.Linear(hidden, bottleneck)
    self.apply(init_linear)
    linear = nn.Linear(bottleneck, prototypes, bias=False)
    self.prototypes = parametrizations.weight_norm(linear)
    nn.init.ones_(self.prototypes.parametrizations.weight.original0)

  def forward(self, x):
    x = self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(x)))))
    return self.prototypes(F.normalize(x.float(), dim=-1))


def init_linear(module):
  if isinstance(module, nn.Linear):
    nn.init.normal_(module.weight, std=0.02)
    nn.init.zeros_(module.bias)
