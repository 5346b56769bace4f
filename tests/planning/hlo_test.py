"""What is read off a compiled program, beside counts by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dinojax import sharding
from dinojax.planning import hlo

# As the TPU compiler writes them: a batch of products as a dilated convolution, an
# estimate, a collective in two fusions of one channel.
TPU = """HloModule jit_f, is_scheduled=true

%body (p: (s32[], bf16[9,2,5,5], bf16[9,2,5,16])) -> (s32[], bf16[9,2,5,5]) {
  %p = (s32[]{:T(128)}, bf16[9,2,5,5]{3,2,1,0}, bf16[9,2,16,5]{3,2,1,0}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = bf16[9,2,5,5]{3,2,1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %y = bf16[9,2,16,5]{3,2,1,0:T(8,128)(2,1)S(1)} get-tuple-element(%p), index=2
  %product = bf16[9,2,16,5]{2,3,1,0:T(8,128)(2,1)} convolution(%y, %x), \
window={size=9x2 stride=8x1 lhs_dilate=9x2}, dim_labels=01bf_01io->01bf, \
backend_config={"window_config":{"estimated_cycles":"70"}}
  ROOT %out = (s32[], bf16[9,2,5,5]{3,2,1,0}) tuple(%n, %x)
}

%condition (q: (s32[], bf16[9,2,5,5])) -> pred[] {
  %q = (s32[]{:T(128)}, bf16[9,2,5,5]{3,2,1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%q), index=0
  %limit = s32[]{:T(128)} constant(40)
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%gathering.1 (a: bf16[64,12]) -> bf16[64,192] {
  %a = bf16[64,12]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[64,192]{1,0} all-gather(%a), channel_id=7, \
replica_groups=mesh['data'=8,'fsdp'=16] {'fsdp'}, dimensions={1}
}

ENTRY %main (arg: (s32[], bf16[9,2,5,5], bf16[9,2,16,5]), w: bf16[64,12]) -> s32[] {
  %arg = (s32[], bf16[9,2,5,5]{3,2,1,0}, bf16[9,2,16,5]{3,2,1,0}) parameter(0)
  %w = bf16[64,12]{1,0} parameter(1)
  %one = bf16[64,192]{1,0} fusion(%w), kind=kCustom, calls=%gathering.1
  %fetch = ((bf16[64,12]{1,0}), bf16[16,12]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%w), \
slice={[0:16], [0:12]}
  %fetched = bf16[16,12]{1,0:S(1)} slice-done(%fetch)
  %two = bf16[64,192]{1,0} fusion(%w), kind=kCustom, calls=%gathering.1
  %while.1 = (s32[], bf16[9,2,5,5]{3,2,1,0}) while(%arg), condition=%condition, \
body=%body, metadata={op_name="jit(f)/while"}
  ROOT %r = s32[] get-tuple-element(%while.1), index=0
}
""".replace("\\\n", "")


def test_a_loops_body_counts_as_often_as_it_turns():
  program = hlo.Program(TPU)
  (product,) = [run for run in program.runs() if run.op.name == "product"]
  assert product.times == 40
  assert product.op.cycles == 70
  # 9 x 2 products of [16, 5] x [5, 5]; the dilation adds positions, not work.
  assert program.flops(product) == 2 * 9 * 2 * 16 * 5 * 5
  # y lies on the chip: x is read and the product written.
  assert program.bytes(product) == 2 * (9 * 2 * 5 * 5 + 9 * 2 * 16 * 5)


def test_fetching_a_slice_onto_the_chip_reads_the_slice_alone():
  program = hlo.Program(TPU)
  runs = {run.op.name: program.bytes(run) for run in program.runs()}
  assert runs["fetch"] == 16 * 12 * 2
  assert runs["fetched"] == 0


def test_a_collective_in_two_fusions_has_one_channel():
  program = hlo.Program(TPU)
  found = [c for run in program.runs() for c in program.collectives(run)]
  assert found == [("all-gather", 15 * 64 * 12 * 2, "7 (64, 192)")] * 2


def test_flops_of_a_scan_equal_the_count_by_hand():
  def f(x, w):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()

  x, w = jnp.ones((16, 32)), jnp.ones((7, 32, 32))
  program = hlo.Program(jax.jit(jax.grad(f, 1)).lower(x, w).compile().as_text())
  flops = sum(program.flops(run) * run.times for run in program.runs())
  # Forward, and backward for input (the first turn's is nobody's) and weights.
  assert flops == pytest.approx(2 * 16 * 32 * 32 * 7 * 3, rel=0.05)


@pytest.mark.parametrize(
  "kind, size", [("all-gather", 7 * 8 * 64 * 4), ("all-reduce", 2 * 7 * 8 * 64 * 4)]
)
def test_bytes_of_collectives_equal_those_of_a_ring(kind, size):
  mesh = sharding.make_mesh(data=1, fsdp=8)

  def put(*spec):
    return NamedSharding(mesh, PartitionSpec(*spec))

  if kind == "all-gather":  # [64, 64] in shares of [8, 64]
    x, out = jax.device_put(jnp.ones((64, 64)), put("fsdp")), put()
    compiled = jax.jit(lambda x: x + 1, out_shardings=out).lower(x).compile()
  else:  # partial products [64, 64] on each device
    x = jax.device_put(jnp.ones((64, 64)), put(None, "fsdp"))
    compiled = jax.jit(lambda x: x @ x.T, out_shardings=put()).lower(x).compile()
  program = hlo.Program(compiled.as_text())
  found = [c[:2] for run in program.runs() for c in program.collectives(run)]
  assert found == [(kind, size)]


def test_reading_a_slice_of_a_stack_costs_the_slice():
  def f(stack, i):
    return jax.lax.dynamic_index_in_dim(stack, i, keepdims=False) * 2

  args = jnp.ones((100, 1000)), 3
  program = hlo.Program(jax.jit(f).lower(*args).compile().as_text())
  assert sum(program.bytes(r) for r in program.runs()) < 4 * 1000 * 4


def test_kernels_of_gpus_count_by_their_shapes():
  # As XLA writes them: cuDNN's configuration is JSON with spaces, cuBLAS's without.
  scores = '"cudnn_fmha_backend_config": {"intermediate_tensor_shape": {"element_type":'
  scores += ' "BF16", "dimensions": ["4", "2", "50", "50"], "tuple_shapes": []}}'
  text = f"""HloModule jit_f

ENTRY %main (a: bf16[16,32], b: bf16[32,8], q: bf16[4,50,2,64]) -> bf16[16,8] {{
  %a = bf16[16,32]{{1,0}} parameter(0)
  %b = bf16[32,8]{{1,0}} parameter(1)
  %q = bf16[4,50,2,64]{{3,2,1,0}} parameter(2)
  %gemm = (bf16[16,8]{{1,0}}, s8[4096]{{0}}) custom-call(%a, %b), \
custom_call_target="__cublas$lt$matmul", backend_config={{"gemm_backend_config":\
{{"dot_dimension_numbers":{{"lhs_contracting_dimensions":["1"]}}}}}}
  %attend = (bf16[4,2,50,64]{{3,1,2,0}}, u8[0]{{0}}) custom-call(%q, %q, %q), \
custom_call_target="__cudnn$fmhaSoftmax", backend_config={{{scores}}}
  %back = (bf16[4,2,50,64]{{3,1,2,0}}, u8[0]{{0}}) custom-call(%q, %q, %q), \
custom_call_target="__cudnn$fmhaSoftmaxBackward", backend_config={{{scores}}}
  ROOT %out = bf16[16,8]{{1,0}} get-tuple-element(%gemm), index=0
}}
""".replace("\\\n", "")
  program = hlo.Program(text)
  runs = {run.op.name: run for run in program.runs()}
  found = {name: program.flops(run) for name, run in runs.items()}
  # The product's FLOPs, of the first of two results: the other is scratch memory.
  assert found["gemm"] == 2 * 16 * 8 * 32
  assert found["attend"] == 2 * 2 * 4 * 2 * 50 * 50 * 64
  assert found["back"] == 5 * 2 * 4 * 2 * 50 * 50 * 64
  assert program.bytes(runs["gemm"]) == 2 * (16 * 32 + 32 * 8 + 16 * 8)


def test_a_loop_of_unknown_length_is_an_error_and_not_one_turn():
  program = hlo.Program(TPU.replace("constant(40)", "parameter(1)"))
  with pytest.raises(ValueError, match=r"while\.1: no number of turns"):
    list(program.runs())
