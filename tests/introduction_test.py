"""A run introduces itself: what changes when it is extended."""

import copy

from dinojax import config_fields, introduction
from experiments import vitg14
from tests import tiny


def saved(config):
  """The config as a checkpoint of a version before loss weights holds it."""
  before = copy.deepcopy(config.to_dict())
  del before["schedules"]["local_weight"], before["schedules"]["gram_weight"]
  del before["schedules"]["learning_rate"]["warmup"]
  return before


def test_a_run_begun_before_loss_weights_existed_says_how_it_is_extended():
  config = tiny.config()
  before = saved(config)
  untouched = copy.deepcopy(before)
  assert introduction.describe_extension(before, config, 50) is None
  config.total_steps = 200
  line = introduction.describe_extension(before, config, 50)
  assert line.startswith("extended from 100 to 200 steps; at step 50: learning_rate ")
  assert "local_weight" not in line and "gram_weight" not in line
  config.schedules.gram_weight.update(start=0.0, final=2.0, first_step=20)
  assert "gram_weight 0 -> 2" in introduction.describe_extension(before, config, 50)
  assert before == untouched


def test_what_older_configs_lack_is_what_the_reference_recipe_has():
  now = vitg14.get_config().to_dict()
  for path, value in config_fields.ADDED.items():
    assert config_fields.field(now, path) == value, path
