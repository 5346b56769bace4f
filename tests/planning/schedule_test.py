"""Waiting for the network, by hand: what runs between start and done hides it."""

import pytest

from dinojax.planning import chips, hlo, schedule

# Per second: 1,000 FLOPs, any memory traffic, 100 bytes by NVLink, 10 between hosts.
CHIP = chips.Chip("test", 1_000.0, 1e9, 1e12, 100.0, 10.0, 0)
PRODUCT = """\
f32[10,10]{1,0} dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={0}"""
PROGRAM = """HloModule jit_f, is_scheduled=true

%body (p: (s32[], f32[10,10])) -> (s32[], f32[10,10]) {
  %p = (s32[], f32[10,10]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%p), index=0
  %a = f32[10,10]{1,0} get-tuple-element(%p), index=1
  %start = (f32[10,10]{1,0}, f32[20,10]{1,0}) all-gather-start(%a), GROUPS
  %work = PRODUCT
  %done = f32[20,10]{1,0} all-gather-done(%start)
  ROOT %out = (s32[], f32[10,10]{1,0}) tuple(%n, %a)
}

%condition (q: (s32[], f32[10,10])) -> pred[] {
  %q = (s32[], f32[10,10]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%q), index=0
  %limit = s32[] constant(5)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (x: (s32[], f32[10,10])) -> f32[20,10] {
  %x = (s32[], f32[10,10]{1,0}) parameter(0)
  %loop = (s32[], f32[10,10]{1,0}) while(%x), condition=%condition, body=%body
  %a = f32[10,10]{1,0} get-tuple-element(%loop), index=1
  ROOT %plain = f32[20,10]{1,0} all-gather(%a), GROUPS
}
"""


@pytest.mark.parametrize(
  "groups, gathering",
  [
    ("[4,2]<=[8]", 4.0),  # 400 bytes from a neighbour, by NVLink
    ("[4,2]<=[2,4]T(1,0)", 40.0),  # or from the other host
  ],
)
def test_a_gpu_waits_for_what_the_work_in_between_does_not_hide(groups, gathering):
  text = PROGRAM.replace("PRODUCT", PRODUCT)
  text = text.replace("GROUPS", f"channel_id=1, replica_groups={groups}")
  product = 2 * 10**3 / 1_000
  waits = 5 * (gathering - product) + gathering  # the last one has nothing beside it
  program = hlo.Program(text, gpus_per_host=4)
  assert schedule.exposed(program, CHIP) == pytest.approx(waits)


def test_collectives_follow_each_other_on_the_network():
  text = """HloModule jit_f, is_scheduled=true

ENTRY %main (a: f32[10,10]) -> f32[20,10] {
  %a = f32[10,10]{1,0} parameter(0)
  %one = (f32[10,10]{1,0}, f32[20,10]{1,0}) all-gather-start(%a), GROUPS
  %two = (f32[10,10]{1,0}, f32[20,10]{1,0}) all-gather-start(%a), GROUPS
  %done = f32[20,10]{1,0} all-gather-done(%one)
  %work = PRODUCT
  ROOT %last = f32[20,10]{1,0} all-gather-done(%two)
}
""".replace("PRODUCT", PRODUCT).replace("GROUPS", "replica_groups=[4,2]<=[8]")
  program = hlo.Program(text, gpus_per_host=8)
  assert schedule.exposed(program, CHIP) == pytest.approx(4 + (4 - 2))
