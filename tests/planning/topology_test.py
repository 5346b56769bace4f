"""Names of machines to plan for, and what is answered to one that cannot be."""

import pytest

from dinojax import errors
from dinojax.networks import attention_gpu
from dinojax.planning import chips, gpu_cards, topology


@pytest.mark.parametrize(
  "name, packages",
  [("h100:16x8", "GPU_PACKAGES"), ("v5e:2x2", "TPU_PACKAGES")],
)
def test_a_missing_package_is_named_with_the_line_that_installs_it(
  name, packages, monkeypatch
):
  monkeypatch.setattr(topology, packages, ("json", "no_such_package", "no.such.one"))
  extra = "plan-gpu" if packages == "GPU_PACKAGES" else "plan"
  with pytest.raises(errors.UserError) as raised:
    topology.devices(name)
  assert str(raised.value) == (
    f"--topology={name} needs packages that are missing (no_such_package, no.such.one):"
    f" pip install -e '.[{extra}]'"
  )


@pytest.mark.parametrize(
  "name, slices, said",
  [
    ("h100", 1, "--topology=h100 must name hosts and the GPUs of each, as h100:16x8"),
    ("h100:16", 1, "--topology=h100:16 must name hosts"),
    ("h200:0x8", 1, "--topology=h200:0x8 must name hosts"),
    ("h100:2x8", 2, "--slices=2 is for TPUs; hosts of GPUs are in the name"),
    ("v5e:3x5", 1, "--topology=v5e:3x5 cannot be planned for"),
    ("v5e:2x2", 0, "--slices=0 must be at least 1"),
  ],
)
def test_a_machine_that_cannot_be_planned_for_is_one_line(name, slices, said):
  with pytest.raises(errors.UserError) as raised:
    topology.devices(name, slices=slices)
  assert str(raised.value).startswith(said)
  assert "\n" not in str(raised.value)


@pytest.mark.parametrize("card", gpu_cards.CARDS.values(), ids=gpu_cards.CARDS)
def test_each_card_has_limits_that_agree_with_what_the_compiler_is_told(card):
  chip = chips.CHIPS[card.kind]
  assert chip.bandwidth == pytest.approx(card.bandwidth, rel=0.01)
  assert 0.85 * card.memory < chip.memory < 0.95 * card.memory
  assert attention_gpu.runs_on(card.kind)
