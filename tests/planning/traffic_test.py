"""Groups of collectives in each of HLO's forms, and what leaves a host of GPUs."""

import pytest

from dinojax.planning import hlo, traffic


@pytest.mark.parametrize(
  "text, wanted",
  [
    ("replica_groups={{0,2},{1,3}}, x", [0, 2]),
    ("replica_groups=[2,4]<=[8], x", [0, 1, 2, 3]),
    ("replica_groups=[4,2]<=[2,4]T(1,0), x", [0, 4]),
    ("replica_groups=mesh['data'=2,'fsdp'=4] {'fsdp'}, x", [0, 1, 2, 3]),
    ("replica_groups=mesh['data'=2,'fsdp'=4] {'data'}, x", [0, 4]),
    ("replica_groups=mesh['a'=2,'b'=1,'c'=2] {'a','c'}, x", [0, 1, 2, 3]),
    ("replica_groups=mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'b'}", None),
    ("source_target_pairs={{0,1},{1,0}}", [0, 1]),
  ],
)
def test_a_group_is_read_in_each_form(text, wanted):
  assert traffic.group(text) == (wanted or [0, 1, 2, 3])


def gathering(groups, kind="all-gather", operand=10):
  """A program with one collective of float32[operand] over 16 GPUs."""
  return f"""HloModule jit_f

ENTRY %main (a: f32[{operand}]) -> f32[8] {{
  %a = f32[{operand}]{{0}} parameter(0)
  ROOT %b = f32[8]{{0}} {kind}(%a), channel_id=1, replica_groups={groups}
}}
"""


@pytest.mark.parametrize(
  "groups, kind, within, between",
  [
    ("[2,8]<=[16]", "all-gather", 7 * 40, None),  # all of a host: no row of the plan
    ("[8,2]<=[2,8]T(1,0)", "all-gather", 0, 40),  # one of each host
    # A host lacks 8 of 16 shares, which come in by its 8 GPUs, one for each.
    ("[1,16]<=[16]", "all-gather", 14 * 40, 40),
    ("[1,16]<=[16]", "all-to-all", 40 * 7 / 16, 40 * 8 / 16),
  ],
)
def test_what_comes_from_other_hosts_is_told_apart(groups, kind, within, between):
  program = hlo.Program(gathering(groups, kind), gpus_per_host=8)
  found = dict(c[:2] for run in program.runs() for c in program.collectives(run))
  assert found[kind] == pytest.approx(within, abs=1)
  assert found.get(hlo.BETWEEN_HOSTS) == pytest.approx(between, abs=1)


def test_a_permutation_leaves_the_host_where_its_target_does():
  text = "source_target_pairs={{0,1},{1,8},{8,9},{9,0}}"
  assert traffic.share_between_hosts(op(text), "collective-permute", 8) == 0.5


def op(attributes):
  return hlo.Op("p", "collective-permute", (), (), attributes)
