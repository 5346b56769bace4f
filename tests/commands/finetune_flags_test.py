"""Flags of fine-tuning."""

import pytest
from absl import flags

from dinojax.commands import finetune_flags
from dinojax.finetuning import tuning


def test_each_way_has_a_flag_and_a_learning_rate():
  assert tuple(finetune_flags.WAYS) == tuning.WAYS
  assert set(finetune_flags.LEARNING_RATES) == set(tuning.WAYS)
  assert set(finetune_flags.HEAD_LR_SCALES) == set(tuning.WAYS)


@pytest.mark.parametrize(
  ("tune", "width", "batch_size", "wanted"),
  [
    ("all", 1024, 256, 1e-4),
    ("all", 128, 256, 8e-4),
    ("all", 128, 64, 4e-4),
    ("head", 384, 256, 8e-3),
  ],
)
def test_the_default_learning_rate_falls_with_width_and_rises_with_the_batch(
  tune, width, batch_size, wanted, monkeypatch
):
  flags.FLAGS.mark_as_parsed()
  monkeypatch.setattr(flags.FLAGS[finetune_flags.TUNE.name], "value", tune)
  found = finetune_flags.learning_rate(width=width, batch_size=batch_size)
  assert found == wanted
