"""Terms added to a loss: smoothness, the Fokker-Planck equation, context, corruption, few examples.

Each measures what it is to hold down, and is 0 where that holds.
"""

import functools

import jax
import jax.numpy as jnp

from jaxdiff.core import (
    batch_keys,
    check_choice,
    check_noise,
    check_one_ended,
    fold_in,
    matmul,
    normal_like,
    quadratic_forms,
    random_tangents,
    safe_divide,
    safe_sqrt,
    unit_tangents,
)
from jaxdiff.couplings import assignment, costs


def step_wise_variation(denoise, process, key, x, t, level):
    """Holds the size of the clean estimate's change with the noise in it to one common level.

        n = |J^T u|,  J = c dD / dx = dD / dnoise,  u = c times normal of unit mean square;
        loss = (n - level)^2

    A network with a constant n moves its samples evenly along paths in noise space. Keep `level` as a
    running mean of n, started at the first batch's, with decay 0.99. Guo et al. (2024), arXiv:2312.04410,
    and their code: derivatives are by the noise, not by the noisy sample, and c comes in twice.

    Args:
      denoise: `(x, t) -> clean estimate`.
      process: forward process.
      key: one key or `(batch,)` keys.
      x: noisy samples, `(batch, ...)`; t their times.
      level: the running mean, a number or `(batch,)`.

    Returns:
      `(losses, n)`, both `(batch,)`.
    """
    u = normal_like(batch_keys(key, x.shape[0], "step_wise_variation"), x)
    c = jnp.asarray(process.coefficients(t)[2], x.dtype)
    _, pull = jax.vjp(lambda x: denoise(x, t), x)
    n = c**2 * jnp.sqrt(_mean(jnp.square(pull(u)[0])) + 1e-12)
    return jnp.square(n - jax.lax.stop_gradient(level)), n


def fokker_planck(log_prob, process, key, x, t, probes=1, exact=False):
    """The squared residual of the Fokker-Planck equation of a density model, per dimension.

        R = d/dt log p - [ (g^2 / 2) (lap log p + |grad log p|^2) - f x . grad log p - f n ]

    R = 0 at every x and t makes the ODE and the SDE samplers of a model agree. Deveney et al. (2023),
    arXiv:2311.15996; Lai et al. (2023), arXiv:2210.04296.

    Args:
      log_prob: `(x, t) -> (batch,)`, a network or `target.log_prob`; t is `(batch,)`.
      process: forward process without a second endpoint.
      key: one key or `(batch,)` keys, for the probes of the Laplacian.
      x: `(batch, ...)`; t: `(batch,)` times in (0, t_max).
      probes: Rademacher probes of the Laplacian; two independent sets would make the square unbiased,
        one set adds the estimate's variance to it.
      exact: the exact Laplacian instead, by n derivatives.

    Returns:
      `(batch,)` losses `R^2 / n`.
    """
    return jnp.square(fokker_planck_residual(log_prob, process, key, x, t, probes, exact)) / x[0].size


def fokker_planck_residual(log_prob, process, key, x, t, probes=1, exact=False):
    """`R` of `fokker_planck`, `(batch,)`."""
    check_one_ended("fokker_planck", process)
    check_noise("fokker_planck", process)
    score = jax.grad(lambda x: jnp.sum(log_prob(x, t)))
    slope = jax.jvp(lambda t: log_prob(x, t), (t,), (jnp.ones_like(t),))[1]
    value, derivative = jax.linearize(score, x)
    if exact:
        laplacian = jnp.sum(quadratic_forms(derivative, unit_tangents(x)), 0)
    else:
        directions = random_tangents(batch_keys(key, x.shape[0], "fokker_planck"), x, probes)
        laplacian = jnp.mean(quadratic_forms(derivative, directions), 0)
    f, g2 = (jnp.asarray(k, x.dtype) for k in process.sde(t))
    return slope - 0.5 * g2 * (laplacian + _sum(value**2)) + f * (_sum(x * value) + x[0].size)


def context_prediction(predicted, x, radius=1):
    """Wasserstein distance between predicted and true neighbours of every token or pixel.

    A head that is used in training alone predicts, at each place, the set of its neighbours; which is
    which does not matter, so the two sets are matched at least cost: the squared Wasserstein-2 distance of
    sets of equal weight. Yang et al. (2024), arXiv:2401.02015.

    Args:
      predicted: `(batch, height, width, k, channels)`, k = (2 radius + 1)^2 - 1.
      x: `(batch, height, width, channels)`, clean data or features of it.
      radius: of the neighbourhood; places whose neighbourhood leaves the image do not count.

    Returns:
      `(batch,)` mean squared distances.

    Raises:
      ValueError: for shapes that do not fit.
    """
    side = 2 * radius + 1
    expected = (*x.shape[:3], side**2 - 1, x.shape[3])
    if predicted.shape != expected or min(x.shape[1:3]) < side:
        raise ValueError(
            f"context_prediction: expected predicted of shape {expected} for x of {x.shape} and radius "
            f"{radius}, got {predicted.shape}"
        )
    height, width = x.shape[1] - side + 1, x.shape[2] - side + 1
    offsets = [(i, j) for i in range(side) for j in range(side) if (i, j) != (radius, radius)]
    true = jnp.stack([x[:, i : i + height, j : j + width] for i, j in offsets], axis=3)
    inner = predicted[:, radius : radius + height, radius : radius + width]

    def distance(one, other):
        if one.shape[-1] == 1:  # on a line the best pairs are the sorted ones
            return jnp.mean(jnp.square(jnp.sort(one, 0) - jnp.sort(other, 0)))
        which = assignment(jax.lax.stop_gradient(costs(one, other)))
        return jnp.mean(jnp.sum(jnp.square(one - other[which]), -1))

    each = jax.vmap(jax.vmap(jax.vmap(distance)))(inner, true)
    return jnp.mean(each, axis=(1, 2))


def perturb_condition(key, embedding, gamma=1.0, law="normal"):
    """A condition's embedding with noise `gamma u / sqrt(d)`, d its dimension: for training.

    Chen et al. (2024), arXiv:2405.20494, eq. 8; gamma = 1 is theirs.

    Args:
      key: one key or `(batch,)` keys.
      embedding: `(batch, d)` or `(batch, ..., d)`.
      gamma: strength, at least 0; 0 changes nothing.
      law: of u: "normal", or "uniform" on [-1, 1].
    """
    check_choice("perturb_condition", "law", law, ("normal", "uniform"))
    keys = batch_keys(key, embedding.shape[0], "perturb_condition")
    draw = (
        jax.random.normal if law == "normal" else functools.partial(jax.random.uniform, minval=-1, maxval=1)
    )
    u = jax.vmap(lambda k: draw(k, embedding.shape[1:]))(keys)
    return embedding + (gamma / embedding.shape[-1] ** 0.5 * u).astype(embedding.dtype)


def corrupt_labels(key, label, rate, classes):
    """Labels of which a share `rate` is replaced by any class, uniformly; `(batch,)`.

    The data's side of the same method: fix the key per example to corrupt a data set once and for all.
    """
    if isinstance(rate, (int, float)) and not 0 <= rate <= 1:
        raise ValueError(f"corrupt_labels: expected rate in [0, 1], got {rate}")
    keys = batch_keys(key, label.shape[0], "corrupt_labels")
    change = jax.vmap(lambda k: jax.random.bernoulli(k, rate))(fold_in(keys, 0))
    other = jax.vmap(lambda k: jax.random.randint(k, (), 0, classes, label.dtype))(fold_in(keys, 1))
    return jnp.where(change, other, label)


def pairwise_similarity(adapted, source, high_frequency=False):
    """Divergence between the similarities of a batch under an adapted and a source model.

        p_i = softmax_j cos(x_i, x_j), j != i;   loss_i = KL(p_i of source | p_i of adapted)

    Keeps the variety of the source when a model is adapted to a few examples: both models' clean
    estimates from the same noisy examples. Zhu et al. (2022), arXiv:2211.03264, and (2023),
    arXiv:2306.14153; `high_frequency` compares the Haar details of images. The direction is that of the
    authors' code, `KLDivLoss(log p_adapted, p_source)`, whose mean over a batch is this one's divided by
    batch - 1: their weights are to be divided by that.

    Args:
      adapted, source: `(batch, ...)` clean estimates; images `(batch, height, width, channels)` for
        `high_frequency`.

    Returns:
      `(batch,)` divergences.
    """
    if adapted.shape != source.shape or adapted.shape[0] < 3:
        raise ValueError(
            f"pairwise_similarity: expected equal batches of at least 3, got {adapted.shape} and "
            f"{source.shape}"
        )
    if high_frequency:
        adapted, source = haar_details(adapted), haar_details(source)

    def rows(x):
        x = x.reshape(x.shape[0], -1)
        x = safe_divide(x, safe_sqrt(jnp.sum(x**2, axis=1, keepdims=True)))  # 0 has no direction
        alone = jnp.eye(x.shape[0], dtype=bool)
        return jax.nn.log_softmax(jnp.where(alone, -jnp.inf, matmul(x, x.T)), axis=1), alone

    log_p, alone = rows(jax.lax.stop_gradient(source))
    log_q, _ = rows(adapted)
    gap = jnp.where(alone, 0.0, log_p) - jnp.where(alone, 0.0, log_q)
    return jnp.sum(jnp.where(alone, 0.0, jnp.exp(log_p)) * gap, axis=1)


def high_frequency(estimate, x0):
    """Squared error of the Haar details of a clean estimate, `(batch,)` (arXiv:2211.03264)."""
    return _mean(jnp.square(haar_details(estimate) - haar_details(x0)))


def haar_details(x):
    """The sum of the three detail bands of one orthonormal Haar step, at half the resolution.

        LH + HL + HH = (3 d - a - b - c) / 2  of blocks [[a, b], [c, d]]

    with the filters `L = [1, 1] / sqrt(2)` and `H = [-1, 1] / sqrt(2)`. The bands are added before they are
    compared, as in the authors' code (arXiv:2306.14153).

    Args:
      x: `(batch, height, width, channels)` with even height and width.
    """
    if x.ndim != 4 or x.shape[1] % 2 or x.shape[2] % 2:
        raise ValueError(f"haar_details: expected (batch, even, even, channels), got {x.shape}")
    a, b, c, d = x[:, ::2, ::2], x[:, ::2, 1::2], x[:, 1::2, ::2], x[:, 1::2, 1::2]
    return 0.5 * (3 * d - a - b - c)


_sum, _mean = jax.vmap(jnp.sum), jax.vmap(jnp.mean)
