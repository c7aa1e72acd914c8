"""Where the probability-flow ODE takes a point: the answer that deterministic samplers approach.

With the angle `theta = atan2(c, a)` and `u = (x - b y) / sqrt(a^2 + c^2)`, the flow of every process
is one and the same ODE,

    du/dtheta = -sin(theta) (D + cos(theta) score),

with the denoiser `D` and the score (`Target.pull` where noise is not normal) of
`cos(theta) x0 + sin(theta) noise`. It is regular at both ends, so a map may start at a = 0 and end at c = 0.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

from jaxdiff.core import is_concrete, match_dims, on_host, safe_sqrt
from jaxdiff.testing.targets import GaussianMixture

_NEAREST = 1e-6  # the angle at which a target without density at c = 0 is left for its denoiser


def flow_map(target, process, x, t, s, y=None):
    """Takes `x` at time `t` along the probability-flow ODE to time `s`, either way.

    For one Gaussian under normal noise in closed form, traceable and differentiable, in the dtype of `x`.
    With the eigenvalues `l_k` and eigenvectors `u_k` of its covariance and `z = x - b y`,

        z_s = a_s mean + sum_k sqrt((a_s^2 l_k + c_s^2) / (a_t^2 l_k + c_t^2)) u_k u_k^T (z_t - a_t mean).

    For any other target by an adaptive Runge-Kutta method of order 8 in float64 on the host, to about
    1e-10: a numpy array in float64 comes back, and `x`, `t` and `s` have to be concrete.

    Args:
      x: `(batch, *event)`.
      t: time of `x`, in [0, t_max]; scalar, or `(batch,)` for a Gaussian.
      s: time of the answer, as `t`.
      y: second endpoint, the shape of `x`, for processes that have one.

    Raises:
      ValueError: for a start without density, or traced input or a time per example where the map
        is integrated.
    """
    law = target.under("flow_map", process)
    if law is target and isinstance(target, GaussianMixture) and len(target.weights) == 1:
        return _gaussian_map(target, process, x, t, s, y)
    if not is_concrete(process, x, t, s, y):
        raise ValueError(
            "flow_map: expected known numbers, got traced ones; only the map of one Gaussian is in "
            "closed form, so call this outside jit, vmap and grad"
        )
    if np.ndim(t) or np.ndim(s):
        raise ValueError(f"flow_map: expected scalar t and s, got {np.shape(t)} and {np.shape(s)}")
    x = np.asarray(x, np.float64)
    (a_t, b_t, c_t), (a_s, b_s, c_s) = (process.coefficients(float(r)) for r in (t, s))
    if process.endpoint(y) is not None:
        x = x - b_t * np.asarray(y, np.float64)
    start, end = np.arctan2(c_t, a_t), np.arctan2(c_s, a_s)
    if target.degenerate and start < _NEAREST:
        raise ValueError(f"flow_map: expected a start with noise, got t = {t}, where c = {c_t}")
    z = np.hypot(a_s, c_s) * _integrate(law, target.event, x / np.hypot(a_t, c_t), start, end)
    return z if y is None else z + b_s * np.asarray(y, np.float64)


def _integrate(law, event, u, start, end):
    """The flow of `cos(theta) x0 + sin(theta) noise` from one angle to another."""
    with on_host(), jax.enable_x64(True):
        shape, flat = u.shape, (-1, int(np.prod(event)))

        @jax.jit
        def slope(theta, u):
            z, a, c = u.reshape(flat), jnp.cos(theta)[None], jnp.sin(theta)[None]
            du = -c[:, None] * (law.denoise(z, a, c) + a[:, None] * law.pull(z, a, c))
            return du.reshape(-1)

        def host_slope(theta, u):
            return np.asarray(slope(jnp.float64(theta), jnp.asarray(u)))

        to_data = law.degenerate and end < _NEAREST
        span = (start, _NEAREST if to_data else end)
        if span[0] != span[1]:
            result = solve_ivp(host_slope, span, u.ravel(), "DOP853", rtol=1e-12, atol=1e-13)
            if not result.success:
                raise ValueError(f"flow_map: the integrator stopped: {result.message}")
            u = result.y[:, -1]
        if to_data:
            angles = jnp.cos(span[1])[None], jnp.sin(span[1])[None]
            u = np.asarray(law.denoise(jnp.asarray(u).reshape(flat), *angles))
    return u.reshape(shape)


def _gaussian_map(target, process, x, t, s, y):
    z, a_t, c_t = target.unpack("flow_map", process, x, t, y)
    _, a_s, c_s = target.unpack("flow_map", process, x, s, y)
    before, after = target.residuals(z, a_t, c_t), target.variances(z, a_s, c_s)
    moved = []
    for residual, variance in zip(before, after, strict=True):
        moved.append(None if residual is None else residual[0] * safe_sqrt(variance / residual[1]))
    one = jnp.ones((z.shape[0], 1), z.dtype)
    z = a_s[:, None] * jnp.asarray(target.means, z.dtype) + target.combine(one, *moved)
    x_s = z.reshape(jnp.shape(x))
    if y is not None:
        x_s = x_s + match_dims(jnp.asarray(process.coefficients(s)[1], z.dtype), x_s) * y
    return x_s.astype(jnp.result_type(x))
