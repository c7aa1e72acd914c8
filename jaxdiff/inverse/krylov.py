"""Conjugate gradients, one system per example: no example depends on the others in its batch."""

import jax
import jax.numpy as jnp

from jaxdiff.core import match_dims, safe_divide


def conjugate_gradient(apply, b, iterations, start=None):
    """`v` with `apply(v) = b`, after a fixed number of steps.

    Args:
      apply: symmetric, positive and linear, `(batch, ...) -> (batch, ...)`, example by example. A network's
        Jacobian need not be: a system ends at the first direction along which `apply` is not positive.
      b: `(batch, ...)`.
      iterations: at most; a system that is solved stays as it is.
      start: first guess; 0 by default.
    """
    x = jnp.zeros_like(b) if start is None else start
    r = b if start is None else b - apply(x)

    def step(_, carry):
        x, r, p, rho = carry
        q = apply(p)
        curvature = _inner(p, q)
        goes_on = match_dims(curvature > 0, b)
        alpha = jnp.where(goes_on, match_dims(safe_divide(rho, curvature), b), 0)
        x, r = x + alpha * p, r - alpha * q
        new = _inner(r, r)
        p = jnp.where(goes_on, r + match_dims(safe_divide(new, rho), b) * p, p)
        return x, r, p, new

    return jax.lax.fori_loop(0, iterations, step, (x, r, r, _inner(r, r)))[0]


def _inner(u, v):
    return jnp.sum((u * v).reshape(len(u), -1), axis=1)
