"""How far clean estimates are from clean data: what the optimal variance of a reverse step is made of."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import batch_keys, concrete, dataclass, fold_in, namespace


@dataclass
class EstimateError:
    """Mean squared error of a clean estimate, per number, at fitted times.

    Attributes:
      t: `(n,)` increasing times.
      value: `(n,)` mean of `(x0 - D)^2`.
      process: the process that it was measured on.
    """

    t: jax.Array
    value: jax.Array
    process: object

    def at(self, process, t):
        """The error at times `t`, interpolated: linearly in its logarithm over `log(c / (a + c))`.

        Raises:
          ValueError: for another process, or times outside those fitted.
        """
        _check_process(self.process, process)
        known, times = concrete(t), concrete(self.t)
        if known is not None and times is not None:
            outside = known[(known < times[0] * (1 - 1e-6)) | (known > times[-1] * (1 + 1e-6))]
            if outside.size:
                raise ValueError(
                    f"EstimateError: expected times within the fitted [{times[0]:g}, {times[-1]:g}], got "
                    f"{outside[0]:g}; fit on a grid that covers them"
                )
        xp = namespace(t, process, self)
        value = xp.log(xp.maximum(xp.asarray(self.value), 1e-30))
        return xp.exp(xp.interp(_place(xp, process, t), _place(xp, process, xp.asarray(self.t)), value))


def fit_estimate_error(key, denoise, process, x0, times, y=None):
    """Measures how far clean estimates are from clean data, for `ancestral(variance=...)`.

    For an exact denoiser the mean squared error is `(c / a)^2 (1 - c^2 Gamma)`, with the score statistics
    `Gamma = E|score|^2 / d` of Bao et al. (2022), arXiv:2201.06503, theorem 1, without its difference of
    near-equal numbers; for a trained one it is what makes the variance optimal for the mean that the
    denoiser has (Bao et al. (2022), arXiv:2206.07309, eq. 9).

    Args:
      key: one key, or `(batch,)` keys.
      denoise: `(x, t) -> clean estimate`.
      process: forward process.
      x0: `(batch, ...)` clean data; a few hundred examples are enough.
      times: times to fit at, such as the sampling grid, in any order; 0 is left out. Between them the
        error is interpolated.
      y: the second endpoint, `(batch, ...)`, for processes that have one.

    Returns:
      `EstimateError`.
    """
    t = np.unique(np.asarray(times, np.float64))
    t = t[t > 0]
    if t.size == 0:
        raise ValueError("fit_estimate_error: expected times above 0, got none")
    x0 = jnp.asarray(x0)
    keys = batch_keys(key, x0.shape[0], "fit_estimate_error")

    def error(numbered):
        number, t = numbered
        x_t = process.perturb(x0, process.noise(fold_in(keys, number), x0), t, y)
        return jnp.mean((denoise(x_t, t) - x0) ** 2)

    value = jax.lax.map(error, (jnp.arange(t.size), jnp.asarray(t, jnp.result_type(float))))
    return EstimateError(t=t, value=value, process=process)


def _place(xp, process, t):
    return -xp.logaddexp(0.0, process.log_snr(t))


def _check_process(fitted, process):
    same = jax.tree.structure(fitted) == jax.tree.structure(process)
    pairs = zip(jax.tree.leaves(fitted), jax.tree.leaves(process), strict=False)
    known = [(concrete(one), concrete(other)) for one, other in pairs]
    same = same and all(a is None or b is None or np.allclose(a, b) for a, b in known)
    if not same:
        raise ValueError(f"EstimateError: was fitted for {fitted}, got {process}; fit it again")
