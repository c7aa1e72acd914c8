"""The optimizer of a run: AdamW with clipping, a warm-up and a decay to zero."""

import optax

from jaxdiff.core import check_choice, check_positive, is_concrete

DECAYS = ("cosine", "linear", "constant")


class Elementwise(optax.GradientTransformationExtraArgs):
    """An optimizer to which it is all one in which array a number lies; `fit` may pack arrays for it."""


def learning_rates(peak, steps, warmup=0, decay="cosine"):
    """A schedule: `peak (k + 1) / warmup` over the first updates, then down to 0 at `steps`.

    Args:
      peak: highest rate.
      steps: number of updates of the run.
      warmup: updates of the linear rise.
      decay: `cosine`, `linear` or `constant` (no decay).

    Raises:
      ValueError: if a number is out of range.
    """
    check_positive("learning_rates", learning_rate=peak, steps=steps)
    check_choice("learning_rates", "decay", decay, DECAYS)
    if not 0 <= warmup < steps:
        raise ValueError(
            f"learning_rates: expected warmup in [0, {steps}), got {warmup}; lower it or train longer"
        )
    rest = steps - warmup
    falls = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest),
        "linear": lambda: optax.linear_schedule(peak, 0.0, rest),
        "constant": lambda: optax.constant_schedule(peak),
    }
    rise = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, falls[decay]()], [warmup])


def adamw(learning_rate, *, beta1=0.9, beta2=0.999, nesterov=False, weight_decay=0.0, clip=1.0):
    """AdamW behind clipping of the gradient's global norm (`clip=0` switches that off).

    Loshchilov and Hutter (2019), arXiv:1711.05101.

    Args:
      learning_rate: a number, or a schedule such as `learning_rates(...)`.
      beta1, beta2: decay of the moments, in [0, 1).
      nesterov: whether a step takes the first moment as it will be after one more such gradient
        (Dozat (2016), "Incorporating Nesterov Momentum into Adam").
      weight_decay: decoupled decay, multiplied by the learning rate.
      clip: largest norm of the gradient, or 0.

    Raises:
      ValueError: if a number is out of range.
    """
    for name, value in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= value < 1:
            raise ValueError(f"adamw: expected {name} in [0, 1), got {value}")
    numbers = {"weight_decay": weight_decay, "clip": clip}
    if is_concrete(learning_rate) and not callable(learning_rate):
        numbers["learning_rate"] = learning_rate
    for name, value in numbers.items():
        if isinstance(value, str) or not 0 <= value < float("inf"):
            raise ValueError(f"adamw: expected {name} to be finite and at least 0, got {value!r}")
    steps = [optax.clip_by_global_norm(clip)] if clip else []
    rule = optax.adamw(learning_rate, b1=beta1, b2=beta2, nesterov=nesterov, weight_decay=weight_decay)
    return Elementwise(*optax.chain(*steps, rule))
