"""A backbone is found in whatever training code has wrapped around it."""

import argparse
import functools

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from dinojax import errors
from dinojax.weights import formats, model, state_dicts
from tests.weights import samples


@functools.cache
def weights():
  architecture = samples.GIANT | dict(pool="cls")
  return samples.random_weights(architecture, heads=("dino_head", "ibot_head"))


def tensors(tree):
  return {name: torch.tensor(x) for name, x in tree.items()}


@functools.cache
def released():
  return tensors(state_dicts.write(weights(), "released"))


@functools.cache
def teacher():
  return tensors(state_dicts.write(weights(), "teacher"))


def student():
  return {name: x + 1 for name, x in teacher().items()}


def behind(prefix, arrays):
  return {prefix + name: x for name, x in arrays.items()}


def inside(word, arrays, before):
  """A wrapper around one module of several."""
  return {name.replace(before, f"{before}{word}"): x for name, x in arrays.items()}


def assert_read(path, capfd, aside):
  """The backbone is that of `weights`, and stderr has the line `aside`, or nothing."""
  found = formats.read(str(path)).params
  wanted = {"backbone": weights().params["backbone"]}
  jax.tree.map(np.testing.assert_array_equal, found, wanted)
  line = f"{path}: reads the backbone{aside}\n" if aside else ""
  assert capfd.readouterr() == ("", line)


@pytest.mark.parametrize(
  "wrap",
  [
    lambda: behind("module.", released()),  # DataParallel
    lambda: behind("_orig_mod.", released()),  # torch.compile
    lambda: behind("module._orig_mod.", released()),
    lambda: behind("teacher.backbone.", released()),
    lambda: behind("model.backbone.", released()),
    lambda: inside("_fsdp_wrapped_module.", released(), "blocks.1."),
    lambda: inside(
      "_checkpoint_wrapped_module.", behind("module.", released()), "mlp."
    ),
    lambda: {"net": released()},
    lambda: {"state_dict": behind("module.", released())},
    lambda: {"model": {"teacher": teacher()}},
    lambda: {"teacher": behind("module.", teacher())},
    lambda: {"teacher": inside("_orig_mod.", teacher(), "backbone.")},
  ],
)
def test_prefixes_are_taken_off_without_a_word(tmp_path, capfd, wrap):
  path = tmp_path / "a.pth"
  torch.save(wrap(), path)
  assert_read(path, capfd, "")


@pytest.mark.parametrize(
  "wrap, aside",
  [
    (lambda: released() | {"epoch": 3}, "; left aside: epoch"),
    (
      lambda: {"model": released(), "optimizer": {"state": {0: torch.zeros(2)}}},
      ' at "model"; left aside: optimizer',
    ),
    (
      lambda: {
        "state_dict": behind("module.", released()) | {"module.fc.bias": torch.ones(3)},
        "args": argparse.Namespace(lr=0.1),
        "best": 0.7,
      },
      ' at "state_dict"; left aside: state_dict.fc, args, best',
    ),
    (
      lambda: {
        "model": behind("student.", student()) | behind("teacher.", teacher()),
        "iteration": 7,
      },
      ' at "model.teacher.backbone"; left aside: model.student (66 arrays), iteration',
    ),
    (
      lambda: {"student": behind("module.", student()), "teacher": teacher()},
      ' at "teacher.backbone"; left aside: student (66 arrays)',
    ),
    (
      lambda: {"model": behind("a.", student()), "model_ema": released()},
      ' at "model_ema"; left aside: model (66 arrays)',
    ),
    (
      lambda: (
        released() | {"head.weight": torch.ones(3, 64), "head.bias": torch.ones(3)}
      ),
      "; left aside: head (2 arrays)",
    ),
    (
      lambda: behind("backbone.", released()) | {"x\n\x1b[2J": torch.ones(3)},
      r' at "backbone"; left aside: x\n\x1b[2J',
    ),
    (
      lambda: released() | {f"part{i}.bias": torch.ones(1) for i in range(9)},
      None,
    ),
  ],
)
def test_what_is_left_aside_is_one_line(tmp_path, capfd, wrap, aside):
  path = tmp_path / "model_final.rank_0.pth"
  torch.save(wrap(), path)
  if aside is None:  # a part of a backbone that nobody knows may change its features
    with pytest.raises(errors.UserError, match=r"part0\.bias is left over"):
      formats.read(str(path))
  else:
    assert_read(path, capfd, aside)


@pytest.mark.parametrize("registers", [0, 4])
def test_a_classifier_of_transformers_is_left_aside(tmp_path, capfd, registers):
  kind = "Dinov2WithRegisters" if registers else "Dinov2"
  fields = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=1)
  fields |= dict(image_size=6, patch_size=2, num_labels=3)
  config = getattr(transformers, f"{kind}Config")(**fields)
  network = getattr(transformers, f"{kind}ForImageClassification")(config)
  network.save_pretrained(tmp_path / "tuned")
  network.base_model.save_pretrained(tmp_path / "plain")
  capfd.readouterr()
  found = formats.read(str(tmp_path / "tuned"))
  prefix = network.base_model_prefix
  aside = f'"{prefix}"; left aside: classifier (2 arrays)\n'
  assert capfd.readouterr().err.endswith(aside)
  samples.assert_same(found, formats.read(str(tmp_path / "plain")))
  # The same arrays alone, and in PyTorch's format.
  arrays = safetensors.torch.load_file(tmp_path / "tuned" / "model.safetensors")
  torch.save({"model": arrays}, tmp_path / "tuned.pth")
  samples.assert_same(formats.read(str(tmp_path / "tuned.pth")), found)


@pytest.mark.parametrize(
  "wrap, message",
  [
    (
      lambda: {"first": released(), "second": dict(released())},
      r"holds 2 backbones, with names after 'first\.', 'second\.'; keep the names after"
      r" one of them: .*startswith\('first\.'\)",
    ),
    (
      lambda: released() | {"module.cls_token": released()["cls_token"]},
      "holds cls_token twice, as 'cls_token' and 'module.cls_token'",
    ),
    (
      lambda: {"model": {"teacher.backbone._flat_param": torch.zeros(9)}},
      r"one process's shard .*FSDP.* eval/\*/teacher_checkpoint\.pth",
    ),
    (
      lambda: {"module": {"cls_token": released()["cls_token"]}},
      "no whole DINOv2 backbone",
    ),
    (
      lambda: {"net": {k: x for k, x in released().items() if k != "norm.bias"}},
      r"does not fit its architecture: net\.norm\.bias is missing$",
    ),
    (
      lambda: behind("module.", released() | {"blocks.0.ls3.gamma": torch.ones(64)}),
      r"blocks\.0\.ls3\.gamma is left over$",
    ),
    (
      lambda: {"model": released(), "score": np.float64(0.7)},
      r"holds numpy\S*\.scalar, which is no array .*torch\.load\('a\.pth', weights",
    ),
    (
      lambda: torch.nn.Linear(2, 2),
      r"holds torch\.nn\.modules\.linear\.Linear, which is no array and might run code",
    ),
  ],
)
def test_what_cannot_be_taken_is_named_with_the_way_out(tmp_path, wrap, message):
  torch.save(wrap(), tmp_path / "a.pth")
  with pytest.raises(errors.UserError, match=message) as caught:
    formats.read(str(tmp_path / "a.pth"))
  assert "\n" not in str(caught.value)


def test_heads_beside_the_chosen_backbone_are_read_and_no_others(tmp_path):
  arrays = behind("student.", student()) | behind("teacher.", teacher())
  torch.save({"model": arrays}, tmp_path / "a.pth")
  parts = ("backbone", "dino_head", "ibot_head")
  found = formats.read(str(tmp_path / "a.pth"), parts=parts)
  samples.assert_same(found, weights())
  assert isinstance(found, model.Weights)
