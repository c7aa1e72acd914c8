"""The denoising loss of every continuous process and parameterization."""

import functools

import jax
import jax.numpy as jnp

from jaxdiff import times as times_
from jaxdiff.core import batch_keys, check_made, check_output, floating, fold_in, match_dims


def denoising(
    net, key, x0, *, process, parameterization, weighting=None, times=None, y=None, noise=None,
    strata=None,
):  # fmt: skip
    """Squared error of a network's output at one random time per example.

        t ~ times,  x_t = a x0 + b y + c noise,  loss = w(t) mean |F(c_in x_t, c_noise) - target|^2

    Args:
      net: `net(x, c_noise) -> F`, pure; `c_noise` is `(batch,)`.
      key: one key, or one key per example, `(batch,)`: an example's time and noise are its key's alone.
      x0: clean data, `(batch, ...)`, floating; of a pytree every leaf is noised at the same time, and the
        mean is over all values. A time for each part is `jd.losses.joint`.
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
    x0 = jax.tree.map(functools.partial(floating, "denoising"), x0)
    sizes = [jnp.shape(leaf)[0] for leaf in jax.tree.leaves(x0)]
    if len(set(sizes)) != 1:
        raise ValueError(f"denoising: expected leaves of x0 with one batch axis, got lengths {sizes}")
    keys = batch_keys(key, sizes[0], "denoising")
    t = times.draw(fold_in(keys, 0), process, strata)
    noise = process.noise(fold_in(keys, 1), x0) if noise is None else noise
    x_t = process.perturb(x0, noise, t, y)
    k = parameterization.coefficients(process, t)
    wide = jnp.result_type(*jax.tree.leaves(x0))  # times may be wider
    scaled = jax.tree.map(lambda x: match_dims(jnp.asarray(k.c_in, x.dtype), x) * x, x_t)
    output = check_output("denoising", net(scaled, jnp.asarray(k.c_noise, wide)), x0)

    def squares(output, x0, noise, y=None):
        error = output.astype(x0.dtype) - parameterization.target(process, x0, noise, t, y)
        return jnp.square(error).reshape(len(error), -1)

    errors = jax.tree.map(squares, output, x0, noise, *(() if y is None else (y,)))
    loss = jnp.mean(jnp.concatenate(jax.tree.leaves(errors), axis=1), axis=1)
    if weighting is None:
        return loss
    return loss * jnp.asarray(weighting(process, t) * k.c_out**2, loss.dtype)
