"""A step that was not finite, run again alone: which examples and which leaves are to blame."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import fold_in
from jaxdiff.data.arrays import Examples, batch_indices
from jaxdiff.training.state import leaves_by_path


class Finding(NamedTuple):
    """What `examine` saw.

    Attributes:
      loss: `(batch,)`, of each example.
      bad_loss: numbers, in the batch, of examples whose loss is not finite.
      bad_gradient: numbers of examples with a finite loss whose gradient is not finite.
      leaves: names of parameters whose gradient is not finite, over all examples.
      params: names of parameters that were not finite before the step.
    """

    loss: np.ndarray
    bad_loss: list
    bad_gradient: list
    leaves: list
    params: list


def offence(data, batch_size, seed, nonfinite):
    """`record(step)`: what has to be known of an update that was not finite, to run it again alone.

    Args:
      data, batch_size, seed, nonfinite: as of `fit`.

    Returns:
      A function of the update's number, the first being 1, that returns a dict for JSON: `step`, `key` (the
      run's key, as of `jax.random.key_data`), `indices` (of the batch's examples in the data) and
      `nonfinite`.
    """
    source = data.source if isinstance(data, Examples) else data
    size = len(next(iter(source.values()))) if isinstance(source, Mapping) else len(source)

    def record(step):
        key = jax.random.key_data(jax.random.key(seed))
        indices = batch_indices(size, batch_size, seed, step - 1)
        return {
            "step": step, "key": np.asarray(key).tolist(), "indices": np.asarray(indices).tolist(),
            "nonfinite": nonfinite,
        }

    return record


def advance(state, update, feed, key, step):
    """The state before the update that makes it `step + 1`: the same updates again, on one device.

    Args:
      state: `TrainState` of an earlier step, such as a checkpoint's.
      update: of `make_update`.
      feed: of `make_feed`.
      key: the run's key.
      step: updates before the wanted one.
    """
    again = jax.jit(lambda state, resident, item: update(state, feed.gather(resident, item), key)[0])
    for done in range(int(state.step), step):
        state = again(state, feed.resident, jax.tree.map(lambda a: a[0], feed.items(done, 1)))
    return state


def examine(loss, params, batch, key, step):
    """Runs the loss and gradient of one update again, an example at a time.

    An example's loss depends on its own key alone, so it is the one that the update saw, to rounding.

    Args:
      loss: as of `fit`.
      params: parameters before the update.
      batch: pytree of `(batch, ...)` arrays.
      key: the run's key.
      step: updates before this one.

    Returns:
      A `Finding`.
    """
    size = len(jax.tree.leaves(batch)[0])

    @jax.jit
    def one(i):
        def value(params):
            row = jax.tree.map(lambda a: jnp.asarray(a)[i][None], batch)
            own = fold_in(fold_in(key, step), i[None])
            return loss(params, row, own, (i[None], size), step)[0]

        value, grads = jax.value_and_grad(value)(params)
        return value, jax.tree.map(lambda g: jnp.all(jnp.isfinite(g)), grads)

    values, finite = zip(*(jax.device_get(one(i)) for i in jnp.arange(size)), strict=True)
    flags = {name: np.array(flag) for name, flag in leaves_by_path(
        jax.tree.map(lambda *a: np.stack(a), *finite)).items()}
    values, sound = np.array(values), np.all(list(flags.values()), axis=0)
    return Finding(
        values,
        np.flatnonzero(~np.isfinite(values)).tolist(),
        np.flatnonzero(np.isfinite(values) & ~sound).tolist(),
        [name for name, flag in flags.items() if not flag.all()],
        [name for name, p in leaves_by_path(params).items() if not np.isfinite(p).all()],
    )
