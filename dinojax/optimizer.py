"""AdamW as DINOv2 uses it, as one optax transformation over all of the student.

Gradient clipping per network, weight decay mask, layer-wise learning-rate decay, and
prototypes that are frozen at first. Every rule depends on the parameter's path alone.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

NO_DECAY = ("bias", "scale", "gamma")  # biases, LayerNorm and LayerScale
TOKENS = ("cls_token", "mask_token", "register_tokens", "pos_embed", "patch_embed")


def _names(path) -> list[str]:
  return [part.key for part in path]


def decay_mask(params):
  """True where weight decay acts: all but biases, norms and LayerScale."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: _names(path)[-1] not in NO_DECAY, params
  )


def prototype_mask(params):
  """True for the last layer of each head."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: "prototypes" in _names(path), params
  )


def lr_scales(params, *, depth: int, layer_decay: float, patch_embed_lr_scale: float):
  """Layer-wise learning-rate multipliers, broadcastable to the parameters.

  decay^(depth + 1 - layer): layer 0 is tokens, position embeddings and patch embedding,
  block i is layer i + 1, and the final norm and the heads are at 1.
  """

  def scale(path, leaf):
    names = _names(path)
    if "blocks" in names:
      layers = 1 + jnp.arange(depth).reshape(-1, *[1] * (len(leaf.shape) - 1))
      return layer_decay ** (depth + 1.0 - layers)  # [depth, 1, ...]
    if names[0] == "backbone" and names[1] in TOKENS:
      patch = patch_embed_lr_scale if names[1] == "patch_embed" else 1.0
      return jnp.float32(patch * layer_decay ** (depth + 1))
    return jnp.float32(1)

  return jax.tree_util.tree_map_with_path(scale, params)


def clip_per_network(max_norm: float) -> optax.GradientTransformation:
  """Clips each top-level entry of the gradients to an L2 norm of `max_norm`."""

  def clip(grads):
    # 1e-6 as in torch.nn.utils.clip_grad_norm_.
    factor = jnp.minimum(1, max_norm / (optax.tree.norm(grads) + 1e-6))
    return jax.tree.map(lambda g: g * factor, grads)

  return optax.stateless(
    lambda grads, _: {network: clip(g) for network, g in grads.items()}
  )


def scale_by_learning_rates(
  learning_rate: Callable, *, scales: Callable, freeze_prototypes_steps: int
) -> optax.GradientTransformation:
  """Multiplies updates by minus the learning rate, by parameter.

  Args:
    learning_rate: schedule.
    scales: function from parameters to their multipliers.
    freeze_prototypes_steps: learning rate 0 for prototypes before this step; their
      moments do accumulate, as in the reference.
  """

  def update(updates, state, params):
    rate = learning_rate(state.count)
    prototype_rate = jnp.where(state.count < freeze_prototypes_steps, 0.0, rate)

    def apply(update, scale, is_prototype):
      return -(prototype_rate if is_prototype else rate) * scale * update

    updates = jax.tree.map(apply, updates, scales(params), prototype_mask(params))
    return updates, optax.ScaleByScheduleState(count=state.count + 1)

  return optax.GradientTransformation(
    lambda _: optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32)), update
  )


def adamw(
  *,
  learning_rate: Callable,
  weight_decay: Callable,
  depth: int,
  b1: float,
  b2: float,
  eps: float,
  clip_norm: float,
  layer_decay: float,
  patch_embed_lr_scale: float,
  freeze_prototypes_steps: int,
) -> optax.GradientTransformation:
  """AdamW (arXiv:1711.05101) for {"backbone": ..., "dino_head": ..., ...}.

  Args:
    learning_rate: schedule.
    weight_decay: schedule; decay is decoupled and scaled by the learning rate.
    depth: blocks of the backbone.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    clip_norm: largest gradient norm, for each network separately.
    layer_decay: see `lr_scales`.
    patch_embed_lr_scale: see `lr_scales`.
    freeze_prototypes_steps: see `scale_by_learning_rates`.
  """

  def scales(params):
    return lr_scales(
      params,
      depth=depth,
      layer_decay=layer_decay,
      patch_embed_lr_scale=patch_embed_lr_scale,
    )

  return optax.chain(
    clip_per_network(clip_norm),
    optax.scale_by_adam(b1, b2, eps),
    optax.add_decayed_weights(weight_decay, decay_mask),
    scale_by_learning_rates(
      learning_rate, scales=scales, freeze_prototypes_steps=freeze_prototypes_steps
    ),
  )
