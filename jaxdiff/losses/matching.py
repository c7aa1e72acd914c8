"""Flow matching on coupled pairs, and the average velocity of one-step flows."""

import jax
import jax.numpy as jnp

from jaxdiff import parameterizations, processes
from jaxdiff.core import batch_keys, check_output, floating, fold_in, match_dims
from jaxdiff.losses.denoising import denoising


def flow_matching(
    net, key, x0, *, process=None, coupling=None, label=None, times=None, y=None, noise=None, strata=None
):
    """Conditional flow matching: squared error of the velocity `a' x0 + b' y + c' noise`.

    `denoising` with `velocity()`, on noise that a coupling has paired with the batch. With `y` it is the
    velocity of a stochastic interpolant; the interpolant's score is `-E / c` of a network E that `denoising`
    trains with `noise()`. Lipman et al. (2023), arXiv:2210.02747; Tong et al. (2024), arXiv:2302.00482.

    Args:
      net: `net(x, c_noise) -> F`, the velocity.
      key, x0, times, y, noise, strata: as of `denoising`.
      process: `RectifiedFlow()` by default.
      coupling: of `jd.couplings`, between `x0` and the noise, for processes without a second endpoint;
        independent if None. It looks at the batch it is given: on several devices, at the share of each.
      label: `(batch,)` classes within which a coupling pairs.

    Returns:
      `(batch,)` losses.
    """
    process = processes.RectifiedFlow() if process is None else process
    keys = batch_keys(key, jnp.shape(jax.tree.leaves(x0)[0])[0], "flow_matching")
    if coupling is not None:
        if not hasattr(x0, "shape"):
            got = jax.tree.structure(x0)
            raise ValueError(f"flow_matching: expected x0 that is one array for a coupling, got {got}")
        if y is not None:
            raise ValueError(
                "flow_matching: expected no coupling with y, got both: noise that is paired with x0 goes "
                "with y too, and in sampling it does not; pair x0 with y instead"
            )
        if noise is None:
            noise = process.noise(fold_in(keys, 1), floating("flow_matching", x0))
        noise = coupling(jax.random.fold_in(keys[0], 2), x0, noise, label)
    return denoising(
        net,
        keys,
        x0,
        process=process,
        parameterization=parameterizations.velocity(),
        times=times,
        y=y,
        noise=noise,
        strata=strata,
    )


def mean_flow(net, key, x0, *, share=0.25, power=0.0, times=None, noise=None):
    """The average velocity between two times of rectified flow, for sampling in one step.

        u(x_t, t, r) = 1 / (t - r) int_r^t v ds   obeys   u = v - (t - r) d/dt u(x_t, t, r)
        loss = w mean |u(x_t, t, r) - sg(v - (t - r) (du/dx v + du/dt))|^2,   v = noise - x0
        w = sg(1 / (|u - target|^2 + 1e-3)^power)

    Sampled by `jd.solvers.flow_map(net)`: `x_r = x_t - (t - r) u`. Geng et al. (2025), arXiv:2505.13447,
    eq. 6, 10 and 22.

    Args:
      net: `net(x, t, r) -> u`, the shape of `x`; times are `(batch,)`, r <= t.
      key: one key or `(batch,)` keys.
      x0: clean data, `(batch, ...)`, floating.
      share: of examples whose two times differ, in [0, 1]; the rest learn the velocity itself.
      power: of the weight that tames large errors: 0 for plain squares, 1 in the paper's best runs.
      times: distribution of both times, `jd.times.logit_normal(-0.4)` by default. Not stratified: an
        example's two times would be of one stratum.
      noise: `(batch, ...)` noise that goes with `x0`; drawn by default.

    Returns:
      `(batch,)` losses.
    """
    from jaxdiff import times as times_

    process = processes.RectifiedFlow()
    x0 = floating("mean_flow", x0)
    keys = batch_keys(key, x0.shape[0], "mean_flow")
    times = times or times_.logit_normal(-0.4)
    if isinstance(times, times_.Times):
        times = times.replace(stratified=False)
    first, second = (jnp.asarray(times.draw(fold_in(keys, i), process), x0.dtype) for i in (0, 1))
    t, r = jnp.maximum(first, second), jnp.minimum(first, second)
    differ = jax.vmap(lambda k: jax.random.bernoulli(k, share))(fold_in(keys, 2))
    r = jnp.where(differ, r, t)
    noise = process.noise(fold_in(keys, 3), x0) if noise is None else noise
    v = noise - x0
    x_t = process.perturb(x0, noise, t)
    u, slope = jax.jvp(net, (x_t, t, r), (v, jnp.ones_like(t), jnp.zeros_like(r)))
    check_output("mean_flow", u, x0)
    target = jax.lax.stop_gradient(v - match_dims(t - r, v) * slope)
    squares = jnp.square(u - target)
    total = jnp.sum(jax.lax.stop_gradient(squares), axis=tuple(range(1, squares.ndim)))
    return jax.vmap(jnp.mean)(squares) / (total + 1e-3) ** power
