"""Conditioning on a measurement, denoiser to denoiser: all linear methods are one formula.

With `e = y - A D(x)`, the noise variance v of the measurement and `V = Cov[x0 | x_t] = (c^2 / a) dD/dx`,

    D_y = D + outer A^T (A inner A^T + v)^-1 e

is the exact clean estimate given y where `x0 | x_t` is Gaussian with the covariance outer = inner = V. What
the literature's methods choose for the two covariances is all that they differ in:

    method          outer   inner               network
    dps             V       0                   one gradient
    pigdm           V       r^2                 one gradient
    tmpd            V       row sums of V       two gradients
    mmps            V       V                   one gradient for each step of conjugate gradients
    jacobian_free   r^2     r^2                 no gradient
    diffpir         c^2 / (weight a^2), both    no gradient
    ddnm            as jacobian_free, v = 0     no gradient

with `r^2 = c^2 s^2 / (a^2 s^2 + c^2)`, the variance of a value of standard deviation s = sigma_data.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import (
    check_count,
    check_noise,
    check_one_ended,
    check_positive,
    dataclass,
    match_dims,
    matmul,
    safe_divide,
    static_field,
)
from jaxdiff.inverse.krylov import conjugate_gradient
from jaxdiff.inverse.noise import check_noiseless, check_noisy, model
from jaxdiff.inverse.operators import check_measurement

COVARIANCE = "(c^2 / a) dD / dx is the covariance under normal noise alone"
EXACT = 1e12  # the precision of a clean estimate at c = 0; finite, for measurements without noise


def dps(denoise, process, operator, y, noise_level, scale=None):
    """Diffusion posterior sampling: the gradient of the likelihood at the clean estimate.

        D_y = D + (c^2 / a) grad_x log p(y | D(x)),    or with scale: D - scale (c^2 / a) grad_x |y - A D|

    Chung et al. (2023), arXiv:2209.14687. The likelihood at the mean is too sure of itself at high noise:
    the law is too narrow, and with little measurement noise small steps diverge. Published results use the
    second form, whose size does not depend on the noise (their zeta is `scale` up to the step).

    Args:
      scale: None for the likelihood of `noise_level`; or the size of the normalised gradient.
    """
    noise = model(noise_level, "dps")
    if scale is None:
        check_noisy("dps", noise, ", or scale= for a measurement without noise")

    def guided(x, t):
        clean, pull = jax.vjp(lambda x: denoise(x, t), x)

        def log_prob(clean):
            if scale is None:
                return jnp.sum(noise.log_prob(y, operator.forward(clean)))
            residual = (y - operator.forward(clean)).reshape(len(y), -1)
            return -scale * jnp.sum(jnp.sqrt(jnp.sum(residual**2, axis=1) + 1e-12))

        return clean + _gain(process, x, t) * pull(jax.grad(log_prob)(clean))[0]

    return _checked(guided, operator, y, "dps")


def pigdm(denoise, process, operator, y, noise_level, sigma_data=1.0, iterations=50):
    """Pseudo-inverse guidance: `outer = V`, `inner = r^2`. Song et al. (2023), OpenReview 9_gsMA8MRKQ.

    Exact for data whose values are independent with deviation `sigma_data`; else biased by how far `V` is
    from `r^2`.

    Args:
      sigma_data: standard deviation of the data's values.
      iterations: of conjugate gradients, for operators without a basis.
    """
    check_positive("pigdm", sigma_data=sigma_data)
    check_noise("pigdm", process, COVARIANCE)
    noise = model(noise_level, "pigdm")

    def guided(x, t):
        clean, pull = jax.vjp(lambda x: denoise(x, t), x)
        near, e = operator.at(clean), y - operator.forward(clean)
        weighted = near.gain(e, _spread(process, x, t, sigma_data), _variance(noise, y), iterations)
        return clean + _gain(process, x, t) * pull(weighted)[0]

    return _checked(guided, operator, y, "pigdm")


def tmpd(denoise, process, operator, y, noise_level):
    """Tweedie moment projection: `inner` is the diagonal of the row sums of `A V A^T`.

    Boys et al. (2023), arXiv:2310.06721. Exact where `A V A^T` is diagonal; else biased by what stands off
    its diagonal.
    """
    check_noise("tmpd", process, COVARIANCE)
    noise = model(noise_level, "tmpd")

    def guided(x, t):
        clean, pull = jax.vjp(lambda x: denoise(x, t), x)
        near, gain = operator.at(clean), _gain(process, x, t)
        e = y - operator.forward(clean)
        rows = near.forward(gain * pull(near.adjoint(jnp.ones_like(e)))[0])
        e = e / (jnp.maximum(rows, 0.0) + _variance(noise, y) + 1e-12)
        return clean + gain * pull(near.adjoint(e))[0]

    return _checked(guided, operator, y, "tmpd")


def mmps(denoise, process, operator, y, noise_level, iterations=5):
    """Moment matching: `outer = inner = V`, the system solved by conjugate gradients.

    Rozet et al. (2024), arXiv:2405.13712. Exact for a Gaussian, as `iterations` grow to the number of
    measured values; of a mixture, what lies between modes is taken for one Gaussian.

    Args:
      iterations: one gradient of the network each, and one more.
    """
    check_count("mmps", iterations=iterations)
    check_noise("mmps", process, COVARIANCE)
    noise = model(noise_level, "mmps")

    def guided(x, t):
        clean, pull = jax.vjp(lambda x: denoise(x, t), x)
        near, gain, v = operator.at(clean), _gain(process, x, t), _variance(noise, y)

        def apply(u):
            return near.forward(gain * pull(near.adjoint(u))[0]) + v * u

        u = conjugate_gradient(apply, y - operator.forward(clean), iterations)
        return clean + gain * pull(near.adjoint(u))[0]

    return _checked(guided, operator, y, "mmps")


def jacobian_free(denoise, process, operator, y, noise_level, sigma_data=1.0, iterations=50):
    """`outer = inner = r^2`: the network is not differentiated.

    `pigdm` with the derivative of values that are independent, with deviation `sigma_data`, in place of the
    network's. Exact for such data; else biased, as what is measured tells of nothing but itself.

    Args:
      sigma_data: standard deviation of the data's values.
      iterations: of conjugate gradients, for operators without a basis.
    """
    check_positive("jacobian_free", sigma_data=sigma_data)
    noise = model(noise_level, "jacobian_free")

    def guided(x, t):
        a, _, c = process.coefficients_for(x, t, "jacobian_free")
        precision = safe_divide(a**2, c**2, EXACT) + 1 / sigma_data**2
        return _corrected(denoise(x, t), operator, y, noise, precision, iterations)

    return _checked(guided, operator, y, "jacobian_free")


def diffpir(denoise, process, operator, y, noise_level, weight=7.0, iterations=50):
    """Half-quadratic splitting: the proximal point of the data term around the clean estimate.

        D_y = argmin_x |y - A x|^2 / v + weight (a / c)^2 |x - D|^2

    Zhu et al. (2023), arXiv:2305.08995, eq. 13; their re-noising with share zeta is `ddim(eta)` or
    `ancestral()` as solver. A point estimate, not a posterior: samples are too alike.

    Args:
      weight: lambda, above 0; how much the denoiser is trusted.
      iterations: of conjugate gradients, for operators without a basis.
    """
    check_positive("diffpir", weight=weight)
    noise = model(noise_level, "diffpir")

    def guided(x, t):
        a, _, c = process.coefficients_for(x, t, "diffpir")
        precision = weight * safe_divide(a**2, c**2, EXACT)
        return _corrected(denoise(x, t), operator, y, noise, precision, iterations)

    return _checked(guided, operator, y, "diffpir")


def ddnm(denoise, process, operator, y, noise_level=0.0, iterations=50):
    """Range-null space decomposition: `D + A^+ (y - A D)`, for measurements without noise.

    Wang et al. (2022), arXiv:2212.00490. What is measured is copied; what is not is the denoiser's alone,
    which does not see how the two go together.
    """
    del process
    check_noiseless("ddnm", noise_level)

    def guided(x, t):
        clean = denoise(x, t)
        e = y - operator.forward(clean)
        return clean + operator.at(clean).gain(e, 1.0, 0.0, iterations)

    return _checked(guided, operator, y, "ddnm")


def mcg(denoise, process, operator, y, noise_level, scale=0.1):
    """Manifold constrained gradient: the normalised gradient of `dps`, then the projection of `ddnm`.

    Chung et al. (2022), arXiv:2206.00941. The projection takes the measurement as free of noise and copies
    it; what is not measured is led by a gradient of fixed size: biased towards the prior.
    """
    steered = dps(denoise, process, operator, y, noise_level, scale)
    return ddnm(steered, process, operator, y)


@dataclass
class MixturePrior:
    """A tractable prior: a Gaussian mixture whose conditionals given `x_t` and `y` are exact.

    Attributes:
      means: `(K, n)`.
      covariances: `(K, n, n)`.
      weights: `(K,)`.
      event: shape of an example, of n values.
    """

    means: jax.Array
    covariances: jax.Array
    weights: jax.Array
    event: tuple = static_field()


def tractable(denoise, process, operator, y, noise_level, prior, share=1.0, jitter=1e-6):
    """The exact conditional of a tractable prior, mixed with the denoiser.

        D_y = (1 - share) D + share E_prior[x0 | x_t, y]

    Liu et al. (2024), arXiv:2401.03349, with a `MixturePrior` as the circuit. Exact, with share 1, where
    the prior is the data's law.

    Args:
      denoise: denoiser; not called with share 1.
      operator: linear.
      prior: `MixturePrior`.
      share: of the prior, in [0, 1]; a number.
      jitter: added to the variance of the measurement, which may then be 0.
    """
    if isinstance(share, (int, float)) and not 0 <= share <= 1:
        raise ValueError(f"tractable: expected share in [0, 1], got {share}")
    check_one_ended("tractable", process)
    check_noise("tractable", process)
    noise = model(noise_level, "tractable")
    if int(np.prod(prior.event)) != prior.means.shape[1]:
        raise ValueError(
            f"tractable: expected means of {int(np.prod(prior.event))} values for the event {prior.event}, "
            f"got shape {prior.means.shape}"
        )
    size = prior.means.shape[1]
    basis = jnp.eye(size).reshape(size, *prior.event)
    flat_y = y.reshape(len(y), -1)
    rows = operator.forward(basis).reshape(size, -1).T  # (m, n)
    v = jnp.broadcast_to(_variance(noise, y) + jitter, y.shape).reshape(len(y), -1)

    def one(x, a, c, y, v):
        """E[x0 | x_t, y] of one example: both are measurements of x0."""
        seen = jnp.concatenate([x, y])
        h = jnp.concatenate([a * jnp.eye(size), rows])
        r = jnp.concatenate([jnp.full(size, c**2 + 1e-12), v])

        def component(mean, covariance):
            cross = matmul(covariance, h.T)
            total = matmul(h, cross) + jnp.diag(r)
            e = seen - matmul(h, mean)
            solved = jnp.linalg.solve(total, e)
            return mean + matmul(cross, solved), -0.5 * (matmul(e, solved) + jnp.linalg.slogdet(total)[1])

        means, logits = jax.vmap(component)(prior.means, prior.covariances)
        return matmul(jax.nn.softmax(logits + jnp.log(prior.weights)), means)

    def guided(x, t):
        numbers = process.coefficients_for(x, t, "tractable")
        a, _, c = (jnp.broadcast_to(k.reshape(-1), len(x)) for k in numbers)
        exact = jax.vmap(one)(x.reshape(len(x), -1), a, c, flat_y, v).reshape(x.shape).astype(x.dtype)
        if isinstance(share, (int, float)) and share == 1:
            return exact
        return (1 - share) * denoise(x, t) + share * exact

    return _checked(guided, operator, y, "tractable")


def _corrected(clean, operator, y, noise, precision, iterations):
    """`D + A^T (A A^T + v precision)^-1 (y - A D)`."""
    v, precision = _variance(noise, y), jnp.broadcast_to(precision.reshape(-1), len(clean))
    shift = v * (match_dims(precision, y) if v.ndim else precision)
    e = y - operator.forward(clean)
    return clean + operator.at(clean).gain(e, 1.0, shift, iterations)


def _variance(noise, y):
    return jnp.asarray(noise.variance(y), jnp.result_type(y, jnp.float32))


def _gain(process, x, t):
    """`c^2 / a`, which makes a covariance of the denoiser's derivative; 0 at a = 0, where it is 0 / 0."""
    a, _, c = process.coefficients_for(x, t, "posterior")
    return safe_divide(c**2, a)


def _spread(process, x, t, sigma_data):
    """`(batch,)`, r^2."""
    a, _, c = process.coefficients_for(x, t, "posterior")
    s2 = sigma_data**2
    return jnp.broadcast_to((c**2 * s2 / (a**2 * s2 + c**2)).reshape(-1), len(x))


def _checked(guided, operator, y, where):
    """The denoiser, which refuses samples that the measurement does not fit."""

    def checked(x, t):
        check_measurement(operator, x, y, where)
        return guided(x, t)

    return checked
