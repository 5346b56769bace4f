"""What one HLO instruction costs, from its text: FLOPs, memory, network.

An instruction is an `hlo.Op`; `scope` has those of its computation by name.
"""

import math
import re

import numpy as np


def flops(op, scope) -> float:
  """FLOPs of matrix products, two per multiply-add."""
  if op.kind == "dot":
    dims = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", op.attributes)[1]
    return _product_flops(op, scope, dims)
  if op.kind == "convolution":
    return _convolution_flops(op, scope)
  if op.kind == "custom-call":
    return _custom_call_flops(op, scope)
  return 0.0


def _product_flops(op, scope, contracted: str) -> float:
  """Of a product whose left operand is summed over these dimensions, as "1,2"."""
  lhs = scope[op.operands[0]].arrays[0].dims
  terms = math.prod(lhs[int(d)] for d in re.findall(r"\d+", contracted))
  return 2.0 * math.prod(op.arrays[0].dims) * terms


def _custom_call_flops(op, scope) -> float:
  """Of a kernel: its own estimate (Pallas), or by shapes (cuBLAS, cuDNN)."""
  if found := re.search(r'"flops":"?(\d+)', op.attributes):
    return float(found[1])
  if "__cublas" in op.attributes:
    found = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', op.attributes)
    return _product_flops(op, scope, found[1])
  if "__cudnn$fmha" in op.attributes:
    scores = re.search(
      r'"intermediate_tensor_shape":\{.*?"dimensions":\[([^\]]*)\]', op.attributes
    )
    scores = math.prod(int(n) for n in re.findall(r"\d+", scores[1]))
    width = scope[op.operands[0]].arrays[0].dims[-1]
    return 2.0 * scores * width * (5 if "Backward" in op.attributes else 2)
  return 0.0


def _convolution_flops(op, scope) -> float:
  """TPU programs have their matrix products as convolutions, batches as dilations."""
  lhs, rhs = (scope[name].arrays[0].dims for name in op.operands[:2])
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.attributes)
  lhs_labels, rhs_labels, out_labels = labels.groups()
  window = re.search(r"window=\{([^}]*)\}", op.attributes)
  fields = dict(part.split("=") for part in window[1].split()) if window else {}
  out = op.arrays[0].dims

  def values(name, default):
    found = fields.get(name)
    return found.split("x") if found else [default] * 9

  flops = 2.0 * rhs[rhs_labels.index("i")]
  flops *= out[out_labels.index("b")] * out[out_labels.index("f")]
  for d in range(sum(label.isdigit() for label in out_labels)):
    size, stride, lhs_dilate, rhs_dilate = (
      int(values(name, "1")[d])
      for name in ("size", "stride", "lhs_dilate", "rhs_dilate")
    )
    low = int(values("pad", "0_0")[d].split("_")[0])
    inputs, outputs = lhs[lhs_labels.index(str(d))], out[out_labels.index(str(d))]
    position = np.arange(outputs)[:, None] * stride - low
    position = position + np.arange(size)[None] * rhs_dilate
    valid = (position >= 0) & (position <= (inputs - 1) * lhs_dilate)
    flops *= (valid & (position % lhs_dilate == 0)).sum()
  return flops


def main_bytes(op, *, on_chip: bool = False) -> int:
  """Bytes of the result in main memory, or also in the chip's own."""
  return sum(a.bytes for a in op.arrays if on_chip or not a.on_chip)


def received_bytes(op, kind: str, scope) -> int:
  """What a ring of n devices brings to each of them."""
  n = _group_size(op.attributes)
  operands = sum(main_bytes(scope[x], on_chip=True) for x in op.operands if x in scope)
  share = (n - 1) / n
  return int(
    {
      "all-gather": operands * (n - 1),
      "reduce-scatter": operands * share,
      "all-reduce": 2 * operands * share,
      "collective-permute": operands,
    }.get(kind, operands * share)
  )


def received_from_slices(op) -> int:
  """What one transfer between TPU slices brings to each device.

  The text names the slices as "{1,2}x{0:15}", counted from 1, and the devices in each.
  """
  size = op.arrays[0].bytes  # the others are a counter and a token
  if '_transfer_type="ALL_REDUCE"' not in op.attributes:
    return size
  named = re.search(r'_megascale_target="\{([\d,:]*)\}', op.attributes)[1]
  slices = 0
  for part in named.split(","):
    first, _, last = part.partition(":")
    slices += int(last or first) - int(first) + 1
  return 2 * size * (slices - 1) // slices


def _group_size(attributes: str) -> int:
  """Devices that a collective connects, in any of the ways HLO writes them."""
  if found := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
    return int(found[1])
  if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
    return len(found[1].split(","))
  if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
  return 2  # a permutation: from one to another
