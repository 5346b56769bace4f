"""Waiting is counted where devices wait, and the verdict names the slower side."""

import time

import jax
import jax.numpy as jnp
import pytest

from dinojax.reporting import throughput

FLAGS = throughput.Settings(workers="--workers", crops="")  # of fine-tuning


def test_waiting_counts_from_the_start_while_no_step_has_begun():
  timer = throughput.Timer()
  with timer.waiting():
    time.sleep(0.05)
  rates = timer.lap(100)
  assert 0.5 < rates["data_wait_share"] <= 1
  assert 0 < rates["images_per_second"] <= 2000
  assert rates["step_images_per_second"] > rates["images_per_second"]
  assert timer.lap(0)["data_wait_share"] == 0


def test_waiting_that_a_step_covers_is_none():
  @jax.jit
  def step(x):
    return jax.lax.fori_loop(0, 400, lambda _, y: jnp.tanh(y @ x), x)

  x = jnp.eye(300)
  jax.block_until_ready(step(x))
  scalars = step(x)
  timer = throughput.Timer()
  timer.dispatched(scalars)
  with timer.waiting():
    time.sleep(0.02)
  assert timer.lap(1)["data_wait_share"] == 0
  jax.block_until_ready(scalars)
  timer.restart()
  with timer.waiting():
    time.sleep(0.2)
  assert timer.lap(1)["data_wait_share"] > 0.5


def verdict(**changes):
  usual = dict(input_rate=100.0, step_rate=200.0, workers=4, cores=64, shared=False)
  usual["settings"] = throughput.Settings()
  return throughput.verdict(**usual | changes)


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    (dict(input_rate=250.0), "the input keeps up"),
    (
      dict(),
      "waits for images 50% of the time; set config.workers=9, this host",
    ),
    (dict(cores=6), "it would take 9 workers, and this host has 6 cores: set config.w"),
    (dict(cores=4), "this host has 4 cores: store smaller images"),
    (dict(workers=0), "set config.workers=3,"),
    (dict(shared=True), "fewer config.augment.num_local, leave more to the step"),
    (dict(shared=True, settings=FLAGS), "cores: smaller images leave more to the step"),
    (dict(settings=FLAGS), "set --workers=9, this host"),
    (dict(cores=4, settings=FLAGS), "store smaller images, or take more hosts"),
  ],
)
def test_the_verdict_names_the_slower_side_and_the_way_out(changes, says):
  assert says in verdict(**changes)


def rates(share):
  return dict(
    data_wait_share=share, input_images_per_second=1.0, step_images_per_second=2.0
  )


def test_the_judge_speaks_once_and_again_when_waiting_sets_in():
  judge = throughput.Judge(workers=1)
  said = [judge.update(rates(share)) is not None for share in (0, 0, 0.5, 0, 0.5)]
  assert said == [True, False, True, False, False]
  judge = throughput.Judge(workers=1)
  assert [judge.update(rates(0.5)) is not None for _ in range(3)] == [
    True,
    False,
    False,
  ]
