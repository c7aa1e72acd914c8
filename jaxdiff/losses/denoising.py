"""The denoising loss of every continuous process and parameterization."""

import jax
import jax.numpy as jnp

from jaxdiff import times as times_
from jaxdiff.core import batch_keys, check_made, check_output, fold_in, match_dims


def denoising(
    net, key, x0, *, process, parameterization, weighting=None, times=None, y=None, noise=None,
    strata=None,
):  # fmt: skip
    """Squared error of a network's output at one random time per example.

        t ~ times,  x_t = a x0 + b y + c noise,  loss = w(t) mean |F(c_in x_t, c_noise) - target|^2

    Args:
      net: `net(x, c_noise) -> F`, pure; `c_noise` is `(batch,)`.
      key: one key, or one key per example, `(batch,)`: an example's time and noise are its key's alone.
      x0: clean data, `(batch, ...)`, floating.
      process: forward process.
      parameterization: what `F` means.
      weighting: weight on the clean estimate's error, of `jd.weightings`; None weighs the output.
      times: distribution of t, of `jd.times`; uniform and stratified by default.
      y: the second endpoint, the shape of `x0`, for processes that have one.
      noise: noise that goes with `x0` (`jd.couplings`), its shape; drawn from the keys if None.
      strata: `(index, count)`: each example's place in the global batch and its size, for stratified
        times; `(arange(batch), batch)` by default.

    Returns:
      `(batch,)` losses, in float32 or wider.

    Raises:
      ValueError: for data that is no floating array with a batch axis, a wrong number of keys, a
        network that returns another shape, or names and classes in the place of objects.
    """
    times = times_.stratified() if times is None else times
    check_made("denoising", "process", process, "perturb", "jd.processes.VP()")
    check_made("denoising", "parameterization", parameterization, "target", "jd.parameterizations.v()")
    check_made("denoising", "times", times, "draw", "jd.times.uniform()")
    if not (weighting is None or callable(weighting)):
        raise ValueError(
            f"denoising: expected weighting to be a function such as jd.weightings.edm(), got {weighting!r}"
        )
    if not hasattr(x0, "dtype"):
        raise ValueError(
            f"denoising: expected x0 to be one array (batch, ...), got a {type(x0).__name__}; stack lists "
            "with jnp.stack, and train a product process with jd.losses.joint"
        )
    if jnp.ndim(x0) < 1 or not jnp.issubdtype(jnp.result_type(x0), jnp.floating):
        raise ValueError(
            "denoising: expected x0 to be a floating array (batch, ...), got "
            f"{jnp.result_type(x0)} of shape {jnp.shape(x0)}; scale integer images to floats first"
        )
    x0 = jnp.asarray(x0, jnp.promote_types(jnp.result_type(x0), jnp.float32))
    keys = batch_keys(key, x0.shape[0], "denoising")
    t = times.draw(fold_in(keys, 0), process, strata)
    noise = process.noise(fold_in(keys, 1), x0) if noise is None else noise
    x_t = process.perturb(x0, noise, t, y)
    k = parameterization.coefficients(process, t)
    output = check_output("denoising", net(match_dims(k.c_in, x0) * x_t, k.c_noise), x0)
    error = jnp.square(output.astype(x0.dtype) - parameterization.target(process, x0, noise, t, y))
    loss = jax.vmap(jnp.mean)(error)
    if weighting is None:
        return loss
    return loss * weighting(process, t) * k.c_out**2
