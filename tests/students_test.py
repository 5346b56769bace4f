"""Students of a distillation: the config of each, and mistakes in config.distill."""

import pytest

from dinojax import errors, preflight, resolutions, students
from dinojax.data import train_batches
from dinojax.planning import costs
from experiments import distill, vitg14


def make_config(**changes):
  config = distill.get_config(changes.pop("kind", "prototypes"))
  with config.unlocked():
    for path, value in changes.items():
      *groups, name = path.split("__")
      group = config
      for part in groups:
        group = group[part]
      group[name] = value
  return config


def test_a_run_of_one_network_is_its_own_student():
  config = vitg14.get_config()
  assert students.configs(config) == {"": config}


def test_a_student_is_the_runs_config_with_its_own_fields_and_folder():
  config = make_config()
  config.schedules.learning_rate.peak = 3e-4
  found = students.configs(config)
  assert list(found) == ["base", "large", "small"]
  large = found["large"]
  assert large.workdir == "runs/distill/large"
  assert (large.backbone.width, large.backbone.depth) == (1024, 24)
  assert large.backbone.ffn == "mlp" and large.schedules.learning_rate.peak == 3e-4
  assert large.distill.teacher == "runs/vitg14" and not large.distill.students
  assert students.configs(large) == {"": large}
  assert config.backbone.width == 384 and config.workdir == "runs/distill"


def test_students_of_other_patches_have_their_crops_on_the_same_grid():
  own = dict(backbone=dict(patch_size=16))
  config = make_config(distill__students=dict(a=own, b=dict()))
  config.resolutions = (
    dict(share=0.5, global_size=224, local_size=98, gram_size=0),
    dict(share=0.5, global_size=448, local_size=112, gram_size=0),
  )
  preflight.check(config, devices=128)
  found = students.configs(config)
  assert (found["a"].augment.global2.size, found["a"].augment.local.size) == (256, 112)
  assert found["b"].augment.global1.size == 224
  sizes = [row.augment.global1.size for row in resolutions.configs(found["a"])]
  assert sizes == [256, 512]
  shapes = [train_batches.batch_shapes(one)["mask"] for one in found.values()]
  assert shapes[0] == shapes[1]


STUDENT = dict(backbone=dict(width=384))
MISTAKES = {
  "students.*needs a teacher": dict(distill__teacher=""),
  "gram.teacher.*no place": dict(gram__teacher="x", schedules__gram_weight__final=1.0),
  "keep_last=1 must be at least 2": dict(checkpoint__keep_last=1),
  "targets=centering": dict(losses__targets="centering"),
  "distill.backbone.*depth": dict(distill__backbone=dict(width=3)),
  "distill.heads.dino is missing": dict(distill__heads={}),
  "kind='both'": dict(distill__kind="both"),
  "becomes a folder": dict(distill__students={"a/b": STUDENT}),
  "students.a.data must be one of": dict(distill__students=dict(a=dict(data={}))),
  "students.a.backbone.size is not a field; there are": dict(
    distill__students=dict(a=dict(backbone=dict(size=3)))
  ),
  "students.a.backbone.width='24' must be a int": dict(
    distill__students=dict(a=dict(backbone=dict(width="24")))
  ),
  "students.a.backbone.width=None must be a int": dict(
    distill__students=dict(a=dict(backbone=dict(width=None)))
  ),
  "students.a.*must be groups of fields": dict(
    distill__students=dict(a=dict(backbone=24))
  ),
  "students.a.*teacher_temp": dict(
    distill__students=dict(a=dict(schedules=dict(teacher_temp=dict(final=0.1))))
  ),
  "students.a: .*heads=5": dict(distill__students=dict(a=dict(backbone=dict(heads=5)))),
  "students.a: config.heads.dino.prototypes=7 .*131072": dict(
    distill__students=dict(a=dict(heads=dict(dino=dict(prototypes=7))))
  ),
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_named_before_work_starts(line):
  config = make_config(**MISTAKES[line])
  with pytest.raises(errors.UserError, match=line) as error:
    preflight.check(config, devices=128)
  assert "\n" not in str(error.value)


def test_one_run_takes_fewer_flops_than_one_for_each_student():
  for kind, share in (("prototypes", 0.6), ("features", 0.51)):
    whole = costs.model_flops(make_config(kind=kind))
    fields = make_config(kind=kind).distill.students
    apart = [
      costs.model_flops(make_config(kind=kind, distill__students={name: own}))
      for name, own in fields.items()
    ]
    assert whole / sum(apart) == pytest.approx(share, abs=0.005)
    # By hand: the teacher's forward pass is counted once, not three times.
    teacher = (sum(apart) - whole) / 2
    weights = 2 * 1_134_771_200 * 257 * 2  # two a weight and token, of two crops
    attention = 2 * 40 * 4 * 257**2 * 1536
    heads = {"prototypes": 0.005, "features": 0.0}[kind]
    assert teacher / (weights + attention) == pytest.approx(1 + heads, abs=0.003)
