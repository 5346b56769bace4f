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
    found = re.search(r'"lhs_contracting_dimensions":\s*\[([^\]]*)\]', op.attributes)
    return _product_flops(op, scope, found[1])
  if "__cudnn$fmha" in op.attributes:
    scores = re.search(  # JSON with spaces, which cuBLAS's has not
      r'"intermediate_tensor_shape":\s*\{.*?"dimensions":\s*\[([^\]]*)\]',
      op.attributes,
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


def results(op) -> tuple:
  """The arrays that an op returns; of cuBLAS and cuDNN the last one is scratch."""
  scratch = "__cu" in op.attributes and len(op.arrays) > 1
  return op.arrays[:-1] if scratch else op.arrays


def main_bytes(op, *, on_chip: bool = False) -> int:
  """Bytes of the result in main memory, or also in the chip's own."""
  return sum(a.bytes for a in results(op) if on_chip or not a.on_chip)
