"""The Jacobian of a clean estimate: conservativity, gauge freedom, intrinsic dimension, subspaces."""

import jax
import jax.numpy as jnp

from jaxdiff.core import einsum, match_dims, matmul, unit_tangents


def jacobian(field, x, t):
    """The Jacobian of `field(x, t)` at every example, `(batch, n, n)`: rows are outputs.

    n forward derivatives; for data of up to some thousand dimensions.
    """
    _, derivative = jax.linearize(lambda x: field(x, t), x)
    columns = jax.vmap(derivative)(unit_tangents(x))
    return jnp.moveaxis(columns.reshape(x[0].size, x.shape[0], x[0].size), 0, 2)


def asymmetry(denoise, x, t):
    """`|J - J^T| / |J|` in the Frobenius norm, `(batch,)`: 0 for a conservative field.

    The exact clean estimate is a gradient, so its Jacobian is symmetric; a network's need not be. Horvat
    and Pfister (2024), arXiv:2402.03845.

    Args:
      denoise: `(x, t) -> clean estimate`, or any field.
      x: `(batch, ...)` noisy samples; t: their times.
    """
    j = jacobian(denoise, x, t)
    return _norm(j - jnp.swapaxes(j, 1, 2)) / jnp.maximum(_norm(j), 1e-12)


def gauge_residual(remainder, score, x, t):
    """`div r + r . score`, `(batch,)`: 0 at every x where adding `r` to the score changes no marginal.

    That is all that exact sampling and likelihood ask of a field; conservativity is not needed. Horvat and
    Pfister (2024), arXiv:2402.03845, eq. 9.

    Args:
      remainder: `r(x, t)`: what a model's score has beyond the exact one.
      score: `score(x, t)`, the exact one.
    """
    divergence = jnp.trace(jacobian(remainder, x, t), axis1=1, axis2=2)
    return divergence + _sum(remainder(x, t) * score(x, t))


def intrinsic_dimension(denoise, process, x, t, threshold=0.5):
    """The local dimension of the data near `x`, `(batch,)`, seen at a small noise level.

    Along the data the clean estimate follows the noisy sample, across it does not: singular values of
    `a dD / dx` are near 1 or near 0, and those above the threshold are counted. Noise has to be below the
    data's extent along its manifold, and above its extent across.

    Args:
      denoise: `(x, t) -> clean estimate`.
      process: forward process.
      x: `(batch, ...)` noisy samples at the scalar time t.
      threshold: in (0, 1).
    """
    if not 0 < threshold < 1:
        raise ValueError(f"intrinsic_dimension: expected threshold in (0, 1), got {threshold}")
    a = jnp.asarray(process.coefficients(t)[0], x.dtype)
    values = jnp.linalg.svd(a * jacobian(denoise, x, t), compute_uv=False)
    return jnp.sum(values > threshold, axis=-1)


def principal_subspace(denoise, x, t, dimension):
    """`(batch, n, dimension)` orthonormal directions along which the clean estimate moves most with `x`.

    For a mixture of low-rank Gaussians they span the component's own subspace (Wang et al. (2024),
    arXiv:2409.02426).
    """
    left, _, _ = jnp.linalg.svd(jacobian(denoise, x, t))
    return left[:, :, :dimension]


def subspace_denoiser(bases, process, weights=None):
    """The clean estimate of data in a union of subspaces, standard normal in each: a network of low rank.

        D = a / (a^2 + c^2) sum_k w_k U_k U_k^T x,
        w_k ~ weight_k exp(a^2 |U_k^T x|^2 / (2 c^2 (a^2 + c^2)))

    Exact where the bases are the data's. With trained bases (orthonormal, as of `jnp.linalg.qr`) it learns
    them once there are as many examples as a subspace has dimensions, and not before. Wang et al. (2024),
    arXiv:2409.02426, eq. 6.

    Args:
      bases: `(K, n, d)`, orthonormal columns.
      process: forward process without a second endpoint.
      weights: `(K,)`, above 0; equal if None.

    Returns:
      `denoise(x, t)` for t in (0, t_max].
    """
    logits = jnp.zeros(bases.shape[0]) if weights is None else jnp.log(jnp.asarray(weights))

    def denoise(x, t):
        a, _, c = (jnp.asarray(k, x.dtype) for k in process.coefficients(t))
        flat = x.reshape(x.shape[0], -1)
        inside = einsum("bn,knd->bkd", flat, bases)
        a, c = (match_dims(k, logits[None] + 0 * inside[..., 0]) for k in (a, c))
        seen = a**2 / (2 * c**2 * (a**2 + c**2)) * jnp.sum(jnp.square(inside), -1)
        w = jax.nn.softmax(logits[None] + seen, axis=-1) * (a / (a**2 + c**2))
        return einsum("bk,bkd,knd->bn", w, inside, bases).reshape(x.shape)

    return denoise


def subspace_error(one, other):
    """`|P - Q| / sqrt(2 d)` of the projectors on two subspaces, in [0, 1].

    Args:
      one, other: `(..., n, d)` with orthonormal columns.
    """
    if one.shape[-2:] != other.shape[-2:]:
        raise ValueError(f"subspace_error: expected equal (n, d), got {one.shape} and {other.shape}")
    # |P - Q|^2 = 2 d - 2 |one^T other|^2
    overlap = jnp.sum(jnp.square(matmul(jnp.swapaxes(one, -1, -2), other)), axis=(-1, -2))
    return jnp.sqrt(jnp.maximum(1 - overlap / one.shape[-1], 0.0))


def _norm(matrix):
    return jnp.sqrt(_sum(jnp.square(matrix)))


_sum = jax.vmap(jnp.sum)
