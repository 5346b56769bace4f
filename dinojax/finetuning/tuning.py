"""Fine-tuning in pure functions: what is trained, its loss, its step, what is saved.

Four ways, `Recipe.tune`: "head" trains a linear head on the frozen backbone's image
feature, or for segmentation on its patches, "lora" also adapters of the attention
(lora.py), "all" all weights, with layer-wise learning-rate decay, "scratch" all weights
from random ones.

Dimension key: B images, S pixels of their side, F features of an image, C classes.
"""

import dataclasses
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import optax

from dinojax import backbone, optimizer
from dinojax.finetuning import averages, lora, mixing, patch_head, tasks
from dinojax.networks import vit

WAYS = ("head", "lora", "all", "scratch")
B1, B2, EPS = 0.9, 0.999, 1e-8  # of AdamW
CLIP_NORM = 3.0  # of the gradient: of the head, of the adapters, of the backbone
# Of fields that older runs lack.
ADDED = {"task": "classes", "ema": 0.0, "mixup": 0.0, "cutmix": 0.0}
ADDED |= {"head_lr_scale": 1.0}


@dataclasses.dataclass(frozen=True)
class Recipe:
  """All that a result depends on besides weights and images; fields are flags.

  task: one of `tasks.TASKS`. tune: one of WAYS. steps, warmup_steps: updates, and those
  in which the learning rate rises linearly; then half a cosine to 0. head_lr_scale: the
  head's, by that of the rest. layer_decay: of "all", per block, see
  `optimizer.lr_scales`. lora_rank, lora_alpha: of "lora". batch_size: images of a step,
  on all hosts. ema: of `averages.averaged`; 0: off. mixup, cutmix: of `mixing.mix`.
  seed: of first weights, order and crops. min_area, flip_prob: of training crops.
  resize, crop: pixels of evaluated images; crop also of training ones.
  feature, layers: the image feature, as of `backbone.columns`. dtype: of matrix
  products.
  """

  task: str
  tune: str
  steps: int
  warmup_steps: int
  learning_rate: float
  weight_decay: float
  head_lr_scale: float
  layer_decay: float
  lora_rank: int
  lora_alpha: float
  batch_size: int
  ema: float
  mixup: float
  cutmix: float
  seed: int
  min_area: float
  flip_prob: float
  resize: int
  crop: int
  feature: str
  layers: int
  dtype: str

  @property
  def whole(self) -> bool:
    """Whether all weights are trained."""
    return self.tune in ("all", "scratch")

  @property
  def columns(self) -> tuple[tuple[str, int], ...]:
    """The vectors that make up the image feature, as of `backbone.columns`."""
    return backbone.columns(self.feature, self.layers)


@flax.struct.dataclass
class State:
  """What a step changes.

  step: [] int32, completed updates. trained: {"head": {"kernel": [F, C], "bias": [C]}},
  and "adapters" of "lora", or "backbone" of "all". opt_state: of AdamW. average: moving
  average of `trained`; None: off. norm: moving statistics of `patch_head`; None: of
  another task.
  """

  step: jax.Array
  trained: dict[str, Any]
  opt_state: Any
  average: dict[str, Any] | None = None
  norm: dict[str, jax.Array] | None = None

  @property
  def used(self) -> dict[str, Any]:
    """What is evaluated, saved for use, and loaded: the average where there is one."""
    return self.trained if self.average is None else self.average

  @property
  def head(self) -> dict[str, jax.Array]:
    """The head of `used`, with the statistics of its norm."""
    return self.used["head"] | (self.norm or {})


def make_optimizer(recipe: Recipe, *, depth: int) -> optax.GradientTransformation:
  """AdamW for what is trained. depth: blocks of the backbone."""
  return optimizer.adamw(
    learning_rate=learning_rate(recipe),
    weight_decay=optax.constant_schedule(recipe.weight_decay),
    depth=depth,
    b1=B1,
    b2=B2,
    eps=EPS,
    clip_norm=CLIP_NORM,
    layer_decay=recipe.layer_decay if recipe.tune == "all" else 1.0,
    patch_embed_lr_scale=1.0,
    freeze_prototypes_steps=0,
  )


def learning_rate(recipe: Recipe) -> optax.Schedule:
  """The schedule: from 0 up to the peak, and back to 0 at the last step."""
  return optax.warmup_cosine_decay_schedule(
    0.0, recipe.learning_rate, recipe.warmup_steps, recipe.steps
  )


def init_state(
  recipe: Recipe,
  params: Any,
  tx: optax.GradientTransformation,
  *,
  module: vit.VisionTransformer,
  classes: int,
) -> State:
  """The state before the first update. params: of the backbone, which is `module`."""
  head_key, other_key = jax.random.split(jax.random.key(recipe.seed))
  width, norm = params["norm"]["scale"].shape[-1], None
  features = width * len(recipe.columns)
  if recipe.task == "segmentation":
    features, norm = width, patch_head.first_norm(width)
  kernel = 0.01 * jax.random.normal(head_key, (features, classes))
  trained = {"head": {"kernel": kernel, "bias": jnp.zeros(classes)}}
  if recipe.tune == "lora":
    rank = recipe.lora_rank
    trained["adapters"] = lora.first_adapters(params, rank=rank, key=other_key)
  if recipe.tune == "all":
    trained["backbone"] = params
  if recipe.tune == "scratch":
    side = module.patch_size * module.pos_grid
    image = jnp.zeros((1, side, side, len(module.mean)))
    trained["backbone"] = module.init(other_key, (image,), (None,))["params"]
  average = jax.tree.map(jnp.copy, trained) if recipe.ema else None
  return State(jnp.int32(0), trained, tx.init(trained), average, norm)


def weights(recipe: Recipe, trained: dict[str, Any], frozen: Any) -> Any:
  """The backbone's parameters as they are now. frozen: those before training."""
  if "adapters" in trained:
    scale = recipe.lora_alpha / recipe.lora_rank
    return lora.merge(frozen, trained["adapters"], scale=scale)
  return trained.get("backbone", frozen)


class Network(NamedTuple):
  """A backbone and what its head sees of images.

  module: of the backbone. task: one of `tasks.TASKS`. columns: the image feature, of
  `backbone.columns`; segmentation reads the patches of the last block instead.
  """

  module: vit.VisionTransformer
  task: str
  columns: tuple[tuple[str, int], ...]

  def features(self, params: Any, images: jax.Array) -> jax.Array:
    """[B, F], or patches [B, N, F], of images [B, S, S, C]."""
    if self.task == "segmentation":
      return backbone.apply(self.module, params, images).patches
    return backbone.image_columns(self.module, params, images, self.columns)

  def scores(self, params: Any, head: dict, images: jax.Array) -> jax.Array:
    """As of `tasks.Task.judge`, float32; head: `State.head`."""
    seen = self.features(params, images)
    if self.task == "segmentation":
      return patch_head.scores(head, head, seen)
    return linear(head, seen)


def linear(head: dict[str, jax.Array], features: jax.Array) -> jax.Array:
  """Scores [B, C] of image features [B, F]."""
  return jnp.dot(features, head["kernel"], precision="highest") + head["bias"]


def train_step(
  state: State,
  frozen: Any,
  batch: dict[str, jax.Array],
  *,
  network: Network,
  tx: optax.GradientTransformation,
  recipe: Recipe,
) -> tuple[State, dict[str, jax.Array]]:
  """One update.

  Args:
    state: before it.
    frozen: the backbone's parameters that are not trained; None if all are.
    batch: image [B, S, S, C], and label, as of `tasks.Task.judge`.
    network: without its weights.
    tx: of `make_optimizer`.
    recipe: of the run.
  """
  task = tasks.TASKS[recipe.task]
  images, labels = batch["image"], batch["label"]
  described = [(labels, jnp.ones(len(images)))]
  if recipe.mixup or recipe.cutmix:
    key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)
    images, own = mixing.mix(key, images, mixup=recipe.mixup, cutmix=recipe.cutmix)
    described = [(labels, own), (labels[::-1], 1 - own)]

  def loss_of(trained):
    params, head = weights(recipe, trained, frozen), trained["head"]
    seen, norm = network.features(params, images), None
    if network.task == "segmentation":
      norm = patch_head.batch_norm(seen)
      scores = patch_head.scores(head, norm, seen)
    else:
      scores = linear(head, seen)
    loss, right = tasks.mean(task, scores, described)
    return loss, (right, norm)

  (loss, (right, norm)), grads = jax.value_and_grad(loss_of, has_aux=True)(
    state.trained
  )
  updates, opt_state = tx.update(grads, state.opt_state, state.trained)
  scale = recipe.head_lr_scale
  updates["head"] = jax.tree.map(lambda x: scale * x, updates["head"])
  trained = optax.apply_updates(state.trained, updates)
  scalars = {
    "loss": loss,
    task.train_metric: right,
    "learning_rate": learning_rate(recipe)(state.step),
    **{f"grad_norm_{name}": optax.tree.norm(x) for name, x in grads.items()},
  }
  average = state.average
  if average is not None:
    average = averages.averaged(average, trained, state.step, momentum=recipe.ema)
  if norm is not None:
    momentum = patch_head.MOMENTUM
    norm = averages.averaged(state.norm, norm, state.step, momentum=momentum)
  return State(state.step + 1, trained, opt_state, average, norm), scalars


def to_saved(recipe: Recipe, state: State, frozen: Any) -> dict[str, Any]:
  """The state as a checkpoint holds it, with all weights of the network merged.

  "teacher" is where `weights/runs.py` finds a network that is to be used.
  """
  params = weights(recipe, state.used, frozen)
  saved = {
    "step": state.step,
    "teacher": {"backbone": params, "head": state.head},
    "opt_state": state.opt_state,
  }
  if "adapters" in state.used:
    saved["adapters"] = state.used["adapters"]
  if state.average is not None:
    saved["trained"] = state.trained
  return saved


def of_saved(recipe: Recipe, saved: dict[str, Any]) -> State:
  """The state of a checkpoint; what is frozen comes from elsewhere."""
  head, norm = dict(saved["teacher"]["head"]), None
  if recipe.task == "segmentation":
    norm = {name: head.pop(name) for name in patch_head.NORM}
  used = {"head": head}
  if recipe.tune == "lora":
    used["adapters"] = saved["adapters"]
  if recipe.whole:
    used["backbone"] = saved["teacher"]["backbone"]
  trained, average = (saved["trained"], used) if recipe.ema else (used, None)
  return State(saved["step"], trained, saved["opt_state"], average, norm)
