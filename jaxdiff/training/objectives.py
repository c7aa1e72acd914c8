"""A network and a process made into the loss of a train step."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import losses
from jaxdiff.core import check_positive, check_share, fold_in, match_dims, quick
from jaxdiff.times import Times, stratified

BINS = 8


class NoiseLevels:
    """Bins of log-SNR in which equal shares of the training times fall."""

    def __init__(self, times, process, stream):
        self._times, self._process, self._stream = times, process, stream

    @functools.cached_property
    def edges(self):
        """`(BINS + 1,)` log-SNR, rising, within +-50; the outer bins hold what lies beyond."""
        def at_quantiles(u):
            t = self._times.quantile(self._process, u, **self._times.numbers)
            return self._process.log_snr(jnp.clip(t, self._process.t_min, self._process.t_max))

        u = np.clip(np.linspace(0, 1, BINS + 1, dtype=jnp.result_type(float)), 1e-6, 1 - 1e-6)
        with jax.ensure_compile_time_eval():  # of constants alone it would be an operation at a time
            log_snr = jax.jit(at_quantiles, **quick())(u)
        return np.sort(np.clip(np.nan_to_num(np.asarray(log_snr, np.float64)), -50, 50))

    def times(self, keys, strata):
        """`(batch,)` training times of `(batch,)` examples' keys."""
        return self._times.draw(self._stream(keys), self._process, strata)

    def sums(self, values, keys, strata):
        """`(2, BINS)`: sums of `(batch,)` losses, and numbers of examples, by bin."""
        log_snr = self._process.log_snr(self.times(keys, strata))
        number = jnp.searchsorted(jnp.asarray(self.edges[1:-1], log_snr.dtype), log_snr)
        member = number[:, None] == jnp.arange(BINS)[None]
        return jnp.stack([jnp.where(member, values[:, None], 0).sum(0), member.sum(0)])


def denoising_objective(
    model, process, parameterization, *, weighting=None, times=None, label_drop=0.0,
    null_label=None, augment=None, augment_until=None, augment_above=None,
):
    """`loss(params, batch, keys, strata, step) -> (batch,)` of a conditional network.

    An example's key is folded into four streams (label dropping, augmentation, dropout, times and
    noise), so its loss does not depend on the examples beside it, nor on how the batch is cut.

    Args:
      model: Flax module of `jd.models`, or anything with its `apply`.
      process, parameterization, weighting, times: as of `jd.losses.denoising`.
      label_drop: share of labels replaced by the null class, in [0, 1], for classifier-free guidance
        (Ho and Salimans (2022), arXiv:2207.12598).
      null_label: the null class, the number of classes; needed to drop labels.
      augment: `augment(keys, x) -> (x, vector)`, such as `jd.data.Affine`; the network is told
        `vector`, `(batch, k)`, so that samples, with zeros there, show none of it (Karras et al.
        (2022), arXiv:2206.00364, appendix F.2). A vector of None tells it nothing.
      augment_until: number of updates after which examples are left as they are, or None: a network
        that ends on real images samples none that are softened by interpolation.
      augment_above: noise level `c / a`, on the data's scale, below which examples are left as they
        are, or None: little noise hides nothing of an image that could be learned by heart, and
        it is there that the network learns exact values, such as grey levels.

    Returns:
      The loss, with attributes `num_classes` and `noise_levels`, for `fit`.

    Raises:
      ValueError: if labels are to be dropped and there is no null class, or for a noise level that is
        not above 0.
    """
    check_share("denoising_objective", label_drop=label_drop)
    if label_drop and null_label is None:
        raise ValueError(f"denoising_objective: expected null_label for label_drop={label_drop}, got None")
    if augment_above is not None:
        check_positive("denoising_objective", augment_above=augment_above)

    def stream(keys):  # in which an example's time is drawn, the loss's own or one that comes before it
        return fold_in(fold_in(keys, 3), 0) if augment_above is None else fold_in(keys, 4)

    levels = NoiseLevels(times or stratified(), process, stream)

    def loss(params, batch, keys, strata, step):
        x, condition, drawn = batch["x"], {}, times
        if "label" in batch:
            dropped = jax.vmap(jax.random.bernoulli, (0, None))(fold_in(keys, 0), 1.0 * label_drop)
            label = batch["label"]
            condition["label"] = _dropped(label, dropped, null_label) if label_drop else label
        if augment is not None:
            on = True if augment_until is None else step < augment_until
            if augment_above is not None:
                t = levels.times(keys, strata)
                drawn = Times(_given, {"t": t}, stratified=False)
                on &= process.log_snr(t) < -math.log(augment_above)
            x, vector = _augmented(augment, on, fold_in(keys, 1), x)
            condition |= {} if vector is None else {"vector": vector}
        dropout_keys = fold_in(keys, 2)

        def net(x, c_noise):
            return model.apply({"params": params}, x, c_noise, condition or None, keys=dropout_keys)

        return losses.denoising(
            net, fold_in(keys, 3), x, process=process, parameterization=parameterization,
            weighting=weighting, times=drawn, strata=strata,
        )

    loss.num_classes, loss.noise_levels = getattr(model, "num_classes", None), levels
    return loss


def _given(process, u, t):
    """The quantile function of times that are drawn already."""
    return t


def _dropped(label, dropped, null_label):
    """`label` with the null class in the rows that are `dropped`; narrow integers may not hold its number."""
    if label.dtype.itemsize < 4:
        label = label.astype(jnp.promote_types(label.dtype, jnp.int32))
    return jnp.where(match_dims(dropped, label), null_label, label)


def _augmented(augment, on, keys, x):
    """`augment(keys, x)` where `on`, a flag or one an example, and `x` with a vector of zeros elsewhere."""
    changed, vector = augment(keys, x)
    if on is True:
        return changed, vector
    on = jnp.broadcast_to(on, len(x))
    return (
        jnp.where(match_dims(on, x), changed, x),
        None if vector is None else jnp.where(match_dims(on, vector), vector, 0),
    )
