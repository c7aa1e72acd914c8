"""Learning signals from measurements alone: the denoiser's estimate is measured inside the step."""

import jax
import jax.numpy as jnp

from jaxdiff import times as times_
from jaxdiff.core import batch_keys, fold_in, match_dims
from jaxdiff.inverse.operators import check_measurement


def forward_model(
    net, key, y, *, process, operator, novel=None, times=None, strata=None
):  # fmt: skip
    """Loss of a network that sees noisy measurements and predicts the signal behind them.

        y_t = a y + c noise,    S = net(y_t, t),    loss = mean |A S - y|^2 (+ mean |A' S - y'|^2)

    The network denoises measurements by way of the signal; no signal is ever seen. With measurements that
    only fit together through one signal its least value is the conditional mean of what `A'` would measure.
    Tewari et al. (2023), arXiv:2306.11719, eq. 6 to 8. Sampling denoises a measurement with
    `lambda y_t, t: operator.forward(net(y_t, t))`, and `net` gives the signal with it.

    Args:
      net: `(y_t, t) -> S`, signals `(batch, ...)`; `t` is `(batch,)`.
      key: one key, or `(batch,)` keys.
      y: measurements, `(batch, ...)`.
      process: forward process, in the space of the measurements.
      operator: any differentiable one.
      novel: `(operator, y)` of a second measurement of the same signals, or None.
      times: distribution of t, of `jd.times`; uniform and stratified by default.
      strata: as of `jd.losses.denoising`.

    Returns:
      `(batch,)` losses.
    """
    y = jnp.asarray(y, jnp.promote_types(jnp.result_type(y), jnp.float32))
    keys = batch_keys(key, len(y), "forward_model")
    t = (times or times_.stratified()).draw(fold_in(keys, 0), process, strata)
    y_t = process.perturb(y, process.noise(fold_in(keys, 1), y), t)
    signal = net(y_t, jnp.asarray(t, y.dtype))
    loss = _error(operator, signal, y)
    return loss if novel is None else loss + _error(novel[0], signal, novel[1])


def render(net, operator):
    """The denoiser of measurements: `(y_t, t) -> A net(y_t, t)`."""

    def denoise(y_t, t):
        every = match_dims(jnp.asarray(t, y_t.dtype), jnp.zeros(len(y_t)))
        return operator.forward(net(y_t, jnp.broadcast_to(every, len(y_t))))

    return denoise


def _error(operator, signal, y):
    check_measurement(operator, signal, y, "forward_model")
    return jax.vmap(lambda e: jnp.mean(e**2))(operator.forward(signal) - y)
