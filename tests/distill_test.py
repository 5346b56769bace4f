"""Distillation: losses beside float64 NumPy, students that do not meet, any mesh."""

import functools

import dino_oracle
import jax
import numpy as np
import optax
import PIL.Image
import pytest
import tiny
from jax.sharding import AxisType, Mesh

from dinojax import assembly, distill, optimizer, sharding
from dinojax.networks import heads

KEY = jax.random.key(7)
KINDS = ("prototypes", "features")


def make_config(
  kind="prototypes", names=("narrow", "other"), accumulation=1, shared=True
):
  """A teacher of 48 channels; students of 32, and of 16 in patches of 16 pixels."""
  config, teacher = tiny.config(), tiny.config()
  teacher.backbone.update(width=48, heads=4, depth=1)
  students = {
    "narrow": dict(),
    "other": dict(
      backbone=dict(width=16, patch_size=16, pool="cls", drop_path=0.5),
      schedules=dict(learning_rate=dict(peak=0.05)),
    ),
  }
  with config.unlocked():
    config.accumulation = accumulation
    config.data.batch_size = 32  # 16 groups of 2
    config.remat = "none"  # quicker to compile
    config.backbone.update(drop_path=0.0, depth=1)
    config.losses.targets = "sinkhorn"
    config.schedules.learning_rate.warmup_steps = 0  # the first step moves
    for one in (config, teacher):
      if shared:  # a head for both losses: quicker to compile
        with one.unlocked():
          del one.heads.ibot
      one.backbone.update(mean=dino_oracle.MEAN, std=dino_oracle.STD)
    config.distill.update(
      teacher="a run",
      kind=kind,
      backbone=teacher.backbone,
      heads=teacher.heads if kind == "prototypes" else {},
      students={name: students[name] for name in names},
    )
  return config


def one_device_mesh():
  devices = np.array(jax.devices()[:1]).reshape(1, 1)
  return Mesh(devices, sharding.AXES, axis_types=(AxisType.Auto,) * 2)


def sgd(*, learning_rate, **others):
  """In AdamW's place, which takes seconds to compile; trainee_test.py has it."""
  del others
  return optax.sgd(learning_rate)


def train(config, mesh=None):
  """The state before, that after a step, and its scalars."""
  mesh = mesh or one_device_mesh()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(optimizer, "adamw", sgd)
    run = assembly.assemble_run(config, mesh)
  shapes = run.abstract_state
  students = {
    name: tiny.zeros(one).replace(
      student=tiny.noise(one.student), teacher=tiny.noise(one.teacher)
    )
    for name, one in shapes.students.items()
  }
  before = distill.State(tiny.noise(shapes.teacher, seed=1), students)
  with jax.set_mesh(mesh):
    state = jax.device_put(before, jax.tree.map(lambda x: x.sharding, shapes))
    batch = jax.device_put(tiny.batch(config), sharding.batch_sharding(mesh))
    state, scalars = run.train_step(state, batch, KEY)
  return before, jax.device_get(state), jax.device_get(scalars)


@functools.cache
def trained(kind):
  """By features one student: each takes seconds to compile."""
  names = ("narrow", "other") if kind == "prototypes" else ("narrow",)
  return train(make_config(kind, names))


def close(found, wanted, **tolerance):
  tolerance = {"rtol": 1e-5, "atol": 1e-6} | tolerance
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, wanted
  )


def test_losses_by_prototypes_equal_float64_sums_over_pairs_of_whole_crops():
  config = make_config()
  before, _, scalars = trained("prototypes")
  wanted = dino_oracle.losses(
    nets=assembly.make_nets(config),
    state=before.students["narrow"],
    batch=tiny.batch(config),
    config=config,
    temp=0.04,
    teacher=(assembly.teacher_nets(config), before.teacher),
    hidden=False,
  )
  for name, value in wanted.items():
    np.testing.assert_allclose(scalars["narrow"][name], value, rtol=2e-5, err_msg=name)


def test_loss_of_features_equals_a_float64_mean_of_cosines_and_smooth_l1():
  config = make_config("features")
  before, _, scalars = trained("features")
  crops = np.concatenate(list(tiny.batch(config)["global_crops"]))
  pixels = ((crops / 255 - np.array(dino_oracle.MEAN)) / dino_oracle.STD).astype(
    np.float32
  )

  def see(net, params):
    (seen,) = dino_oracle.apply(net, params, (pixels,), (None,))
    return jax.device_get(seen)

  def project(name, x):
    net = heads.Projection(48, dtype="float32")
    return np.float64(dino_oracle.apply(net, student[name], x))

  def distances(x, y):
    cosines = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
    return 1 - cosines

  student = before.students["narrow"].student
  ours = see(assembly.make_nets(config).backbone, student["backbone"])
  theirs = see(assembly.teacher_nets(config).backbone, before.teacher["backbone"])
  image = distances(project("image_projection", ours.image), np.float64(theirs.image))
  found, wanted = project("patch_projection", ours.patches), np.float64(theirs.patches)
  gap = abs(found - wanted)
  smooth = np.where(gap < 1, gap**2 / 2, gap - 0.5)
  patches = 0.9 * distances(found, wanted).mean() + 0.1 * smooth.mean()
  scalars = scalars["narrow"]
  np.testing.assert_allclose(scalars["loss_image"], image.mean(), rtol=1e-5)
  np.testing.assert_allclose(scalars["loss_patches"], patches, rtol=1e-5)
  np.testing.assert_allclose(scalars["loss"], image.mean() + patches, rtol=1e-5)


def test_a_student_alone_on_eight_devices_in_parts_learns_as_with_others_on_one(
  monkeypatch,
):
  _, together, scalars = trained("prototypes")
  monkeypatch.setattr(sharding, "SMALLEST_SHARDED", 2**9)
  mesh = sharding.make_mesh(data=2, fsdp=4)
  config = make_config(names=("other",), accumulation=2)
  _, alone, own = train(config, mesh)
  close(own["other"], scalars["other"])
  close(alone.students["other"].teacher, together.students["other"].teacher)


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_stays_and_each_students_ema_follows_it(kind):
  before, after, _ = trained(kind)
  jax.tree.map(np.testing.assert_array_equal, after.teacher, before.teacher)
  for name, state in after.students.items():
    assert state.step == 1
    old = before.students[name].teacher
    close(
      state.teacher,
      jax.tree.map(lambda x, y: 0.9 * x + 0.1 * y, old, state.student),
      rtol=1e-4,
    )
  # Nothing is hidden from it: its mask token alone learns nothing.
  moved = jax.tree.map(
    lambda x, y: (x != y).any(),
    after.students["narrow"].student["backbone"],
    before.students["narrow"].student["backbone"],
  )
  assert not moved.pop("mask_token")
  assert all(jax.tree.leaves(moved)), moved


def test_other_patches_see_the_same_crops_as_pillow_resizes_them():
  config = make_config()
  batch = tiny.batch(config)
  net = assembly.make_nets(config).backbone.clone(patch_size=16)
  seen = jax.jit(functools.partial(distill.seen_by, net, patch_size=14))(batch)
  assert seen["local_crops"].shape == (32, 8, 32, 32, 3)
  assert not seen["mask"].any()
  crop = PIL.Image.fromarray(batch["global_crops"][3, 1])
  wanted = np.int32(crop.resize((64, 64), PIL.Image.Resampling.BICUBIC))
  assert abs(np.int32(seen["global_crops"][3, 1]) - wanted).max() <= 1
  smaller = distill.resize(batch["global_crops"][3, 1], 36)
  wanted = np.int32(crop.resize((36, 36), PIL.Image.Resampling.BICUBIC))
  assert abs(np.int32(smaller) - wanted).max() <= 1
