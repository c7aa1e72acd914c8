"""The train state and its fingerprint."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import dataclass, quick
from jaxdiff.training import ema as ema_


@dataclass
class TrainState:
    """Everything that an update changes, and all that a resumed run needs.

    Attributes:
      params: the network's parameters.
      ema: one debiased average of the parameters per profile, a tuple.
      opt_state: the optimizer's state.
      step: number of updates done, int32 scalar.
    """

    params: object
    ema: tuple
    opt_state: object
    step: jax.Array


def init_state(params, optimizer, ema):
    """A train state before the first update. No two leaves share a buffer, nor one with `params`.

    One program: an eager copy compiles one for each shape.
    """
    profiles = ema_.profiles(ema)

    def build(params):
        params = jax.tree.map(jnp.copy, params)
        averages = tuple(ema_.init(params) for _ in profiles)
        return TrainState(params, averages, optimizer.init(params), jnp.zeros((), jnp.int32))

    return jax.jit(build, **quick())(params)


def init_params(model, key, shape, condition=None):
    """Initial parameters of a network.

    Compiled with little optimisation; an eager one compiles a program for every shape.

    Args:
      model: Flax module of `jd.models`.
      key: PRNG key.
      shape: shape of one example.
      condition: a condition for a batch of one, if the network's parameters depend on it.
    """
    x = jnp.zeros((1, *shape), jnp.int32 if hasattr(model, "check_tokens") else None)
    init = jax.jit(lambda key: model.init(key, x, jnp.zeros(1), condition)["params"], **quick())
    return init(key)


def leaves_by_path(tree):
    """`{path: leaf}` with paths such as `params/conv/kernel` that no container type enters.

    So a state restored as dicts and lists has the paths of the dataclasses and tuples it came from.
    """
    entries = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(_name(entry) for entry in path): leaf for path, leaf in entries}


def _name(entry):
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    raise TypeError(f"leaves_by_path: unknown path entry {entry!r}")


def fingerprint(state):
    """One SHA-256 over parameters, EMA and optimizer state: names, dtypes, shapes and bytes.

    Args:
      state: a `TrainState`, or a dict of its fields; leaves are arrays on one host.

    Returns:
      64 hexadecimal digits, equal for equal bits on any machine.
    """
    fields = state if isinstance(state, dict) else vars(state)
    leaves = leaves_by_path({name: fields[name] for name in ("params", "ema", "opt_state")})
    digest = hashlib.sha256()
    for path in sorted(leaves):
        leaf = np.asarray(leaves[path])
        digest.update(f"{path} {leaf.dtype} {leaf.shape}\n".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def parameter_count(params):
    """Number of scalars in a pytree of arrays."""
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params))
