"""Processes that differ only in how their noise is drawn: Poisson flows and Student-t noise."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln

from jaxdiff.core import (
    batch_keys,
    check_noise,
    check_positive,
    concrete,
    dataclass,
    fold_in,
    match_dims,
    normal_like,
)
from jaxdiff.processes.gaussian import EDM, check_times
from jaxdiff.processes.linear import LinearProcess, OfBase


def student_t(keys, like, degrees):
    """Multivariate Student-t noise of unit scale: normal noise over `sqrt(chi^2 / degrees)`, one per example.

    Args:
      keys: one key or `(batch,)` keys.
      like: pytree of `(batch, ...)` arrays; an example's arrays share one draw of chi^2.
      degrees: degrees of freedom, above 0; infinite for normal noise.
    """
    keys = batch_keys(keys, jax.tree.leaves(like)[0].shape[0], "noise")
    normal = normal_like(fold_in(keys, 0), like)
    known = jnp.asarray(degrees, jnp.result_type(float))
    finite = jnp.where(jnp.isinf(known), 1.0, known)
    gamma = jax.vmap(lambda key: jax.random.gamma(key, 0.5 * finite))(fold_in(keys, 1))
    scale = jnp.where(jnp.isinf(known), 1.0, jnp.sqrt(0.5 * finite / gamma))
    return jax.tree.map(lambda z: z * match_dims(scale.astype(z.dtype), z), normal)


class StudentT(LinearProcess):
    """A process whose noise is Student-t with `tail` degrees of freedom: `kappa` times normal noise.

    An example has one `kappa`, `1 / kappa^2 ~ Gamma(tail / 2, tail / 2)`, at all times, and given it the
    process is Gaussian with noise `kappa c`.

    Deterministic solvers need nothing of it. Solvers that are tables multiply the normal noise that they draw
    by `scale_given`, anew in every row and for one forward derivative of the clean estimate more, where the
    noise has a variance: `tail > 2`. To put the clean estimate in the place of the clean data in `posterior`
    would draw too little noise, however many steps there are.
    """

    tail = np.inf

    @property
    def normal(self):
        """Whether the noise is normal: infinite degrees of freedom."""
        known = concrete(self.tail)
        return known is not None and bool(known == np.inf)

    def noise(self, keys, like):
        return student_t(keys, like, self.tail)

    def log_noise(self, noise):
        if self.normal:
            return super().log_noise(noise)
        n, tail = noise[0].size, self.tail
        squares = jnp.sum(jnp.square(noise), axis=tuple(range(1, noise.ndim)))
        half = 0.5 * jnp.asarray(tail, noise.dtype)
        constant = gammaln(half + 0.5 * n) - gammaln(half) - 0.5 * n * jnp.log(np.pi * tail)
        return constant - (half + 0.5 * n) * jnp.log1p(squares / tail)

    def scale_given(self, keys, z, clean, trace, t):
        """A draw of `kappa` given `z_t = x_t - b y`, `(batch,)`: what noise is multiplied by on the way back.

        Given the clean data, `1 / kappa^2` is Gamma with shape `(tail + n) / 2` and rate
        `(tail + |E|^2) / 2`, `E = (z - a x0) / c`. Not given it, its covariance, `kappa^2 (c^2 / a) J` with
        the Jacobian J of the clean estimate, adds `a kappa^2 tr J` to `|E|^2`:

            E[kappa^2 | z] = (tail + |E|^2) / (tail + n - 2 - a tr J),    E of the clean estimate

        which is exact for one point and where z shows kappa: in many dimensions, for normal noise. The
        reverse SDE then has the drift of normal noise, and the diffusion `g sqrt(E[kappa^2 | z])`.

        Args:
          keys: `(batch,)` keys.
          z: points, `(batch, ...)`.
          clean: clean estimates there.
          trace: of J, `(batch,)`.
          t: their time.
        """
        a, _, c = (jnp.asarray(k, z.dtype) for k in self.coefficients(t))
        n, tail = z[0].size, jnp.asarray(self.tail, z.dtype)
        squares = jnp.sum(jnp.square(z - a * clean), axis=tuple(range(1, z.ndim)))
        known = c > 0  # a bridge's pinned end shows nothing of kappa
        squares = jnp.where(known, squares / jnp.where(known, c, 1.0) ** 2, 0.0)
        shape = jnp.where(known, 0.5 * (tail + n), 0.5 * tail)
        unseen = jnp.where(known, jnp.clip(a * trace, 0.0, n) / (tail + n - 2), 0.0)
        gamma = jax.vmap(lambda key: jax.random.gamma(key, shape, dtype=z.dtype))(keys)
        return jnp.sqrt(0.5 * (tail + squares) / (gamma * (1 - unseen)))

    def posterior(self, x_t, x0, t, s, y=None):
        """Mean and standard deviation of `q(x_s | x_t, x0)`, Student-t with `tail + n` degrees of freedom.

        The mean is that of normal noise; the deviation grows with how far `x_t` is from `x0`, for that tells
        `kappa`: by `sqrt((tail + |E|^2) / (tail + n - 2))`, `E = (x_t - a x0 - b y) / c`.
        """
        mean, std = super().posterior(x_t, x0, t, s, y)
        if self.normal:
            return mean, std
        a, b, c = self.coefficients_for(x_t, t, "posterior")
        known = c > 0  # a bridge's pinned end shows nothing of kappa
        miss = jnp.where(known, x_t - a * x0 - (0.0 if y is None else b * y), 0.0) / jnp.where(known, c, 1.0)
        squares = jnp.sum(jnp.square(miss), axis=tuple(range(1, miss.ndim)))
        seen = jnp.broadcast_to(known, miss.shape).astype(miss.dtype)
        rest = self.tail + jnp.sum(seen, axis=tuple(range(1, miss.ndim))) - 2  # 0 and below: no variance
        squared = jnp.where(rest > 0, (self.tail + squares) / jnp.where(rest > 0, rest, 1.0), jnp.inf)
        return mean, std * match_dims(jnp.sqrt(squared), x_t)


@dataclass
class PoissonFlow(StudentT):
    """PFGM++: electric field lines in D further dimensions; time is the noise level, as in `EDM`.

        x_t = x0 + R u,  u uniform on the sphere,  R = r sqrt(B / (1 - B)),  B ~ Beta(N / 2, D / 2)
        r = sigma sqrt(D),  sigma = t

    for data of N dimensions, at `t_max` (the prior) as well. `R u` is `t` times Student-t noise with D
    degrees of freedom, so hyperparameters carry over from EDM by r = sigma sqrt(D), D = 1 is PFGM and D to
    infinity is EDM. Deterministic solvers follow the field lines; for those that draw noise see `StudentT`
    (the authors' code adds normal noise, which is exact for D to infinity alone). Xu et al. (2023),
    arXiv:2302.04265, eq. 5 and proposition 3.1.

    Args:
      D: number of augmented dimensions, above 0; `jnp.inf` is EDM.
    """

    D: float = 128.0
    t_min: float = 0.002
    t_max: float = 80.0

    def __post_init__(self):
        if not (isinstance(self.D, float) and self.D == jnp.inf):
            check_positive("PoissonFlow", D=self.D)
        check_times(self)

    tail = property(lambda self: self.D)
    coefficients = EDM.coefficients
    time_of_log_snr = EDM.time_of_log_snr
    c_noise = EDM.c_noise

    def radius(self, t):
        """`r = t sqrt(D)`, the height in the augmented dimensions."""
        return t * self.D**0.5


@dataclass
class HeavyTailed(OfBase, StudentT):
    """A process with Student-t noise in the place of normal noise: for data with heavy tails.

    Pandey et al. (2024), arXiv:2410.14171 (t-EDM on `EDM`, t-Flow on `RectifiedFlow`). Solvers that draw
    noise: see `StudentT`.

    Args:
      base: the process whose coefficients and transition are used.
      degrees: degrees of freedom, above 0: 2 and less without variance, infinite for normal noise.
    """

    base: LinearProcess
    degrees: float = 4.0

    def __post_init__(self):
        if not (isinstance(self.degrees, float) and self.degrees == jnp.inf):
            check_positive("HeavyTailed", degrees=self.degrees)
        check_noise("HeavyTailed", self.base, "wrap the other way round")

    tail = property(lambda self: self.degrees)
