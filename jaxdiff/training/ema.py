"""Averages of parameters over a run, debiased as they are kept, and any profile from saved snapshots.

A profile says how much the newest parameters weigh in the average after `k` updates:

    e_k = (1 - w_k) e_(k-1) + w_k p_k,    w_1 = 1

so an average can be served at any step, and after the first one it equals the parameters.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import check_positive


class HalfLife(NamedTuple):
    """Exponential, with the bias correction of Adam (Kingma and Ba (2015), arXiv:1412.6980, section 3).

        w_k = (1 - d) / (1 - d^k),  d = 2^(-1 / updates)
    """

    updates: float

    def weight(self, step):
        """`w_k` at step k."""
        rate = -math.log(2) / self.updates
        return jnp.expm1(rate) / jnp.expm1(rate * step)


class Power(NamedTuple):
    """A power of the time since the start: its width grows with the run.

        w_k = 1 - (1 - 1 / k)^(gamma + 1):  parameters of step j weigh as j^gamma

    Karras et al. (2024), arXiv:2312.02696, eq. 123 and 127.
    """

    gamma: float

    def weight(self, step):
        """`w_k` at step k."""
        return -jnp.expm1((self.gamma + 1) * jnp.log1p(-1 / step))


def power(width):
    """`Power` whose profile has the standard deviation `width`, as a share of the run so far, in (0, 0.28).

    Solves `width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))` (arXiv:2312.02696, eq. 126).
    """
    if not 0 < width < 0.288:
        raise ValueError(f"power: expected width in (0, 0.288), a share of the run, got {width}")
    inverse = width**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return Power(float(np.max(roots.real)))


def profile(spec):
    """The profile of a number of updates (a half-life), or of words such as "500" and "power:0.05".

    Raises:
      ValueError: for other words, a half-life that is not above 0, or a width out of range.
    """
    if isinstance(spec, (HalfLife, Power)):
        return spec
    kind, colon, number = str(spec).rpartition(":")
    try:
        value = float(number)
    except ValueError:
        value = None
    if value is None or kind not in ("", "power") or bool(colon) != bool(kind):
        raise ValueError(
            f"ema: expected a half-life in updates, as 500, or power:WIDTH, as power:0.05, got {spec!r}"
        )
    if kind:
        return power(value)
    check_positive("ema", half_life=value)
    return HalfLife(value)


def profiles(specs):
    """A tuple of the `profile` of each of `specs`; words, a number or a profile by themselves are one."""
    alone = isinstance(specs, (str, HalfLife, Power)) or not isinstance(specs, Iterable)
    return tuple(map(profile, [specs] if alone else specs))


def name(spec):
    """The words that `profile` reads, one spelling for each profile."""
    shape = profile(spec)
    if isinstance(shape, HalfLife):
        return f"{shape.updates:.12g}"
    gamma = shape.gamma
    return f"power:{math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))):.6g}"


def init(params):
    """An average that holds no value yet: copies of `params`, in float32 or wider.

    Copies, never the same buffers: a donated train step would give one buffer away twice.
    """
    return jax.tree.map(lambda p: jnp.array(p, jnp.promote_types(p.dtype, jnp.float32)), params)


def update(average, params, spec, step):
    """The average after `step` updates, of which `params` are the newest.

    Args:
      average: pytree of the structure of `params`; its values do not matter at step 1.
      params: the newest parameters.
      spec: what `profile` takes.
      step: number of updates so far, this one included, at least 1.
    """
    weight = profile(spec).weight(step)
    return jax.tree.map(lambda e, p: (1 - weight) * e + weight * p.astype(e.dtype), average, params)


class Snapshot(NamedTuple):
    """An average as it was saved: after `step` updates, of profile `Power(gamma)`."""

    params: object
    step: int
    gamma: float


def synthesize(snapshots, step, wanted):
    """The average of any power profile at any step, after the run, from averages saved during it.

    Args:
      snapshots: list of `Snapshot`. Two profiles, such as widths .05 and .1, saved some tens of times are
        enough.
      step: updates after which the average is wanted, at most that of the last snapshot.
      wanted: `Power`.

    Returns:
      Parameters in the snapshots' structure and dtypes.

    Raises:
      ValueError: without snapshots, or for a step beyond the last of them.
    """
    weights = synthesis_weights([s.step for s in snapshots], [s.gamma for s in snapshots], step, wanted)
    total = jax.tree.map(lambda p: np.zeros(np.shape(p), np.float64), snapshots[0].params)
    for weight, snapshot in zip(weights, snapshots, strict=True):
        total = jax.tree.map(lambda t, p, w=weight: t + w * np.asarray(p, np.float64), total, snapshot.params)
    return jax.tree.map(lambda t, p: t.astype(np.asarray(p).dtype), total, snapshots[0].params)


def synthesis_weights(steps, gammas, step, wanted):
    """Weights of saved averages in the combination of their profiles that is nearest to the wanted one.

    In the least-squares sense: Karras et al. (2024), arXiv:2312.02696, algorithm 3, among weights that sum
    to 1, which keeps parameters at rest where they are, however few the snapshots.

    Args:
      steps, gammas: of each snapshot.
      step, wanted: as of `synthesize`.

    Returns:
      float64 array, one weight a snapshot.
    """
    steps, gammas = np.array(steps, np.float64), np.array(gammas, np.float64)
    if not len(steps) or not 0 < step <= steps.max():
        last = int(steps.max()) if len(steps) else None
        raise ValueError(f"synthesize: expected a step up to that of the last snapshot, {last}, got {step}")
    gram = _overlap(steps[:, None], gammas[:, None], steps[None], gammas[None])
    overlap = _overlap(steps, gammas, np.float64(step), np.float64(wanted.gamma))
    largest, ones = gram.max(), np.ones((1, len(steps)))
    system = np.block([[gram / largest, ones.T], [ones, np.zeros((1, 1))]])  # of Lagrange
    return np.linalg.lstsq(system, np.append(overlap / largest, 1.0), rcond=1e-12)[0][:-1]


def _overlap(t_a, gamma_a, t_b, gamma_b):
    """The inner product of two power profiles that end at `t_a` and `t_b`."""
    exponent = np.where(t_a < t_b, gamma_b, -gamma_a)
    scale = (gamma_a + 1) * (gamma_b + 1) / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b))
    return scale * (t_a / t_b) ** exponent
