"""Directions that mean something: in bottleneck features, or in the noisy data at the right time.

Bottleneck ("h") features come from `jd.models.tapped`, which also adds a change to them; nothing here knows
of networks.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff.core import check_count, match_dims, matmul, safe_divide, safe_sqrt


def principal_directions(features, count):
    """The first principal components of features, `(count, ...)`, of unit norm, and their variances.

    Haas et al. (2024), arXiv:2303.11073.

    Args:
      features: `(n, ...)`, e.g. bottleneck features of n noises at one time.
      count: number of components.
    """
    flat = features.reshape(features.shape[0], -1)
    flat = flat - jnp.mean(flat, 0, keepdims=True)
    _, values, rows = jnp.linalg.svd(flat, full_matrices=False)
    return rows[:count].reshape(count, *features.shape[1:]), values[:count] ** 2 / features.shape[0]


def jacobian_directions(fn, at, count, key, iterations=20):
    """The top right singular directions of the Jacobian of `fn` at one point, and their singular values.

    Subspace iteration by forward and reverse derivatives; no matrix is built. Haas et al. (2024),
    arXiv:2303.11073.

    Args:
      fn: from an array (the change of the bottleneck features of one sample) to an array (its output).
      at: the array at which the Jacobian is taken, e.g. zeros.
      count: number of directions.
      key: a key, for the start.
      iterations: of the subspace iteration.

    Returns:
      `(count, *at.shape)` orthonormal directions, largest first, and `(count,)` singular values.
    """
    check_count("jacobian_directions", count=count)
    if count > at.size:
        raise ValueError(f"jacobian_directions: expected count of at most {at.size}, at's size, got {count}")
    _, push = jax.linearize(fn, at)
    _, pull = jax.vjp(fn, at)

    def apply(basis):  # (size, count) -> J^T J basis
        columns = jax.vmap(push, 0)(basis.T.reshape(count, *at.shape))
        back = jax.vmap(lambda column: pull(column)[0])(columns)
        return back.reshape(count, -1).T, columns.reshape(count, -1)

    start = jnp.linalg.qr(jax.random.normal(key, (at.size, count), at.dtype))[0]
    basis = jax.lax.fori_loop(0, iterations, lambda _, b: jnp.linalg.qr(apply(b)[0])[0], start)
    images = apply(basis)[1]  # rotate within the subspace to the singular vectors
    left, values, _ = jnp.linalg.svd(images, full_matrices=False)
    return matmul(basis, left).T.reshape(count, *at.shape), values


def project_out(direction, others):
    """A direction without its parts along others: edits that leave those attributes alone.

    Haas et al. (2024), arXiv:2303.11073.

    Args:
      direction: any shape.
      others: `(k, *direction.shape)`; they may depend on each other, or be 0.

    Returns:
      The rest, of unit norm.
    """
    others = others.reshape(others.shape[0], -1)
    _, s, basis = jnp.linalg.svd(others, full_matrices=False)
    spanned = s > max(others.shape) * jnp.finfo(s.dtype).eps * s[0]
    flat = direction.reshape(-1)
    rest = flat - matmul(jnp.where(spanned, matmul(basis, flat), 0.0), basis)
    return (rest / jnp.maximum(jnp.linalg.norm(rest), 1e-12)).reshape(direction.shape)


class Boundary(NamedTuple):
    """A linear boundary between two attributes: `normal . x > offset` on the positive side."""

    normal: jax.Array
    offset: jax.Array

    def side(self, x):
        """The signed distance of `x` `(batch, ...)` from the boundary."""
        return matmul(x.reshape(x.shape[0], -1), self.normal.reshape(-1)) - self.offset


def boundary(features, positive, ridge=1e-2):
    """The linear boundary between examples with and without an attribute (Fisher's discriminant).

    For supervised directions of bottleneck features, and of noisy data at the mixing step. Zhu et al.
    (2023), arXiv:2302.08357.

    Args:
      features: `(n, ...)`.
      positive: `(n,)` booleans.
      ridge: added to the covariance, as a share of its mean variance.

    Returns:
      `Boundary`, of unit normal towards the positive side.
    """
    flat, positive = features.reshape(features.shape[0], -1), jnp.asarray(positive, bool)
    share = jnp.mean(positive)
    ones = positive[:, None].astype(flat.dtype)
    up = jnp.sum(flat * ones, 0) / jnp.maximum(jnp.sum(ones), 1)
    down = jnp.sum(flat * (1 - ones), 0) / jnp.maximum(jnp.sum(1 - ones), 1)
    centred = flat - jnp.where(positive[:, None], up[None], down[None])
    covariance = matmul(centred.T, centred) / flat.shape[0]
    scale = ridge * jnp.trace(covariance) / flat.shape[1] + 1e-12
    normal = jnp.linalg.solve(covariance + scale * jnp.eye(flat.shape[1]), up - down)
    norm = jnp.maximum(jnp.linalg.norm(normal), 1e-12)
    offset = matmul(0.5 * (up + down), normal) / norm - jnp.log(share / (1 - share)) / norm
    return Boundary((normal / norm).reshape(features.shape[1:]), offset)


def mixing_step(path, positive, level=0.9):
    """The point of a noisy path at which an attribute is first decided, linearly, and its boundary there.

    Before it the boundary does not separate, after it a shift is undone less and less: one shift here changes
    the attribute. Fitted on one half of the examples and judged on the other.

    Args:
      path: `(points, n, ...)` from noise to data, of samples or of inverted data.
      positive: `(n,)` booleans: the attribute at the end.
      level: share of examples on the right side that counts as decided.

    Returns:
      `(index, Boundary, accuracies (points,))`; the best point if none reaches the level.
    """
    half = path.shape[1] // 2

    def judge(x):
        found = boundary(x[:half], positive[:half])
        return found, jnp.mean((found.side(x[half:]) > 0) == positive[half:])

    found, accuracy = jax.lax.map(judge, path)
    reached = accuracy >= level
    index = jnp.where(jnp.any(reached), jnp.argmax(reached), jnp.argmax(accuracy))
    return index, jax.tree.map(lambda leaf: leaf[index], found), accuracy


def shift(x, found, distance):
    """`x` moved along a boundary's normal until it is at the signed distance from it, `(batch, ...)`.

    Zhu et al. (2023), arXiv:2302.08357: one such shift at the mixing step, then ordinary sampling.
    """
    missing = distance - found.side(x)
    return x + match_dims(missing, x) * found.normal[None]


def contrastive_loss(changes, temperature=0.5):
    """Directions that each do one thing to every example: their effects attract, those of others repel.

        loss_k = -log sum_(i != j) exp(s(d_ik, d_jk)) / sum_(i, j, l != k) exp(s(d_ik, d_jl))

    with s the cosine over the temperature, to be minimised over learned condition embeddings, the model
    frozen. Dalva and Yanardag (2024), arXiv:2312.05390.

    Args:
      changes: `(directions, batch, ...)`: what each direction changes in the noise estimate of each example.
      temperature: above 0.

    Returns:
      `(directions,)` losses.
    """
    count, batch = changes.shape[:2]
    if count < 2 or batch < 2:
        raise ValueError(
            f"contrastive_loss: expected two directions and two examples at least, got {changes.shape}"
        )
    flat = changes.reshape(count * batch, -1)
    flat = safe_divide(flat, safe_sqrt(jnp.sum(flat**2, axis=1, keepdims=True)))  # 0 has no direction
    s = (matmul(flat, flat.T) / temperature).reshape(count, batch, count, batch)
    same = jnp.eye(count, dtype=bool)[:, None, :, None]
    self_ = same & jnp.eye(batch, dtype=bool)[None, :, None, :]
    attract = jax.nn.logsumexp(jnp.where(same & ~self_, s, -jnp.inf), axis=(1, 2, 3))
    repel = jax.nn.logsumexp(jnp.where(same, -jnp.inf, s), axis=(1, 2, 3))
    return repel - attract
