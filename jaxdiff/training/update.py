"""One update, the same body on one device, under `pmap` and under `jit` with shardings."""

import jax
import jax.numpy as jnp
import optax

from jaxdiff.core import check_choice, fold_in
from jaxdiff.training import ema as ema_
from jaxdiff.training.packed import pack_like, unpack

NONFINITE = ("stop", "skip")


def make_update(loss, optimizer, ema=(), accumulate=1, nonfinite="stop"):
    """Builds `update(state, batch, key, axis_name=None) -> (state, metrics)`, a pure function.

    The key of an example is `fold_in(fold_in(key, step), its index in the global batch)` and the
    batch's loss is a mean, so a step does not depend on how the batch is cut over devices, beyond
    rounding. Gradients are averaged over `axis_name`; under `jit` the whole batch is seen at once and
    no axis is named. (Under `shard_map` it needs `check_vma=False`: otherwise gradients of replicated
    parameters arrive summed already, and the mean would be too large by the number of devices.)

    Args:
      loss: `loss(params, batch, keys, strata, step) -> (batch,)`; `keys` is `(batch,)`, `strata` is
        `(index in the global batch, size of the global batch)` and `step` counts the updates before. Its
        `noise_levels`, where it has them, sort the examples' losses (`objectives.NoiseLevels`).
      optimizer: an optax transformation.
      ema: profile of each average that the state holds (`ema.profiles`).
      accumulate: number of parts that a device's batch is cut into, one after the other, to save
        memory; it must divide the batch of a device.
      nonfinite: `skip` leaves a step out whose loss or gradient is not finite, on the device: parameters,
        averages and optimizer state stay as they were and only the step goes on. `stop` leaves it to the
        caller, who sees `finite`.

    Returns:
      `update`: `state` a `TrainState`, packed or not (`packed.pack`), `batch` a pytree of `(batch, ...)`
      arrays (the device's part under `pmap`), `key` the run's key. `metrics` holds scalars over the global
      batch: `loss`, `grad_norm` (before clipping) and `finite`, whether both are; and `levels`, `(2, bins)`:
      the losses of the examples of each noise level and their number, both summed up to one factor, or None.
    """
    check_choice("make_update", "nonfinite", nonfinite, NONFINITE)
    profiles, levels = ema_.profiles(ema), getattr(loss, "noise_levels", None)

    def update(state, batch, key, axis_name=None):
        index, total = _positions(batch, axis_name)
        keys = fold_in(fold_in(key, state.step), index)

        def mean(params, batch, keys, index):
            values = loss(params, batch, keys, (index, total), state.step)
            if jnp.shape(values) != index.shape:
                raise ValueError(
                    f"update: expected loss to return one value per example, {index.shape}, got shape "
                    f"{jnp.shape(values)}; leave the mean to the update"
                )
            return jnp.mean(values), levels and levels.sums(values, keys, (index, total))

        sums, grads = _mean_gradient(mean, unpack(state.params), (batch, keys, index), accumulate)
        result = sums, pack_like(grads, state.params)
        if axis_name is not None:
            result = jax.lax.pmean(result, axis_name)
        (value, sums), grads = result
        norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params, step = optax.apply_updates(state.params, updates), state.step + 1
        pairs = zip(state.ema, profiles, strict=True)
        averages = tuple(ema_.update(e, params, profile, step) for e, profile in pairs)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        metrics = {"loss": value, "grad_norm": norm, "finite": finite, "levels": sums}
        new = state.replace(params=params, ema=averages, opt_state=opt_state, step=step)
        if nonfinite == "skip":
            new = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, state.replace(step=step))
        return new, metrics

    return update


def scan_updates(body, carry, items):
    """`jax.lax.scan`, written out where that is faster: on the CPU, and for one item.

    A convolution's backward pass inside a while loop is 25 to 170 times slower on the CPU, also in
    a loop of one turn, which `unroll=True` leaves behind.
    """
    count = len(jax.tree.leaves(items)[0])
    if count > 1 and jax.default_backend() != "cpu":
        return jax.lax.scan(body, carry, items)
    outputs = []
    for i in range(count):
        carry, output = body(carry, jax.tree.map(lambda a, i=i: a[i], items))
        outputs.append(output)
    return carry, jax.tree.map(lambda *a: jnp.stack(a), *outputs)


def _positions(batch, axis_name):
    """Each local example's index in the global batch, and the size of the global batch."""
    size = len(jax.tree.leaves(batch)[0])
    if axis_name is None:
        return jnp.arange(size), size
    first = jax.lax.axis_index(axis_name) * size
    return first + jnp.arange(size), size * jax.lax.axis_size(axis_name)


def _mean_gradient(mean, params, examples, parts):
    """`mean(params, *examples)`, with its sums, and its gradient, in `parts` one after the other.

    Added up in float32 or wider: a sum in bfloat16 stands still once its terms are below its rounding.
    """
    gradient = jax.value_and_grad(mean, has_aux=True)
    if parts == 1:
        return gradient(params, *examples)

    def add(sums, piece):
        return jax.tree.map(jnp.add, sums, gradient(params, *piece)), None

    # piece j holds every parts-th example, so that a sharded batch axis stays where it is
    pieces = jax.tree.map(lambda a: _cut(a, parts), examples)
    like = jax.eval_shape(gradient, params, *examples)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.promote_types(a.dtype, jnp.float32)), like)
    sums, _ = scan_updates(add, zeros, pieces)
    return jax.tree.map(lambda a, b: (a / parts).astype(b.dtype), sums, like)


def _cut(array, parts):
    return array.reshape(-1, parts, *array.shape[1:]).swapaxes(0, 1)
