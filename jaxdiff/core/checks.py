"""Checks of Python values, with messages that name the argument, its value and what it must be."""

import difflib

import jax
import jax.numpy as jnp
import numpy as np


def check_positive(where, **numbers):
    """Raises ValueError for the first of `numbers` that is not a finite number above zero."""
    for name, value in numbers.items():
        number = isinstance(value, (int, float, np.number))
        if isinstance(value, str) or (number and not 0 < value < float("inf")):
            raise ValueError(f"{where}: expected {name} to be a finite number above 0, got {value!r}")


def check_count(where, least=1, **numbers):
    """Raises ValueError for the first of `numbers` that is not an integer of at least `least`."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{where}: expected {name} to be an integer of at least {least}, got {value!r}")


def check_seed(where, seed):
    """Raises ValueError unless `seed` is an integer in [0, 2^32): higher ones would share their keys."""
    check_count(where, least=0, seed=seed)
    if seed >= 2**32:
        raise ValueError(f"{where}: expected seed to be below 2^32, got {seed}")


def check_share(where, **numbers):
    """Raises ValueError for the first of `numbers` that is outside [0, 1]; traced ones are not seen."""
    for name, value in numbers.items():
        if isinstance(value, (int, float, np.number)) and not 0 <= value <= 1:
            raise ValueError(f"{where}: expected {name}, a share, in [0, 1], got {value}")


def floating(where, x0):
    """A leaf of clean data in float32 or wider."""
    if not hasattr(x0, "dtype") or jnp.ndim(x0) < 1 or not jnp.issubdtype(x0.dtype, jnp.floating):
        got = f"{x0.dtype} of shape {jnp.shape(x0)}" if hasattr(x0, "dtype") else type(x0).__name__
        raise ValueError(
            f"{where}: expected x0 to be a floating array (batch, ...) or a pytree of them, got {got}; "
            "scale integer images to floats first; tokens have jd.losses.discrete, jd.likelihood.token_bound"
        )
    x0 = jnp.asarray(x0)  # a float64 of numpy in the width that JAX has
    return x0.astype(jnp.promote_types(x0.dtype, jnp.float32))


def check_noise(where, process, instead=""):
    """Raises ValueError unless the process's noise is normal and independent in every entry.

    Args:
      where: the caller, whose formula takes it to be.
      process: forward process.
      instead: what to do, after a semicolon.
    """
    wanted = None if getattr(process, "normal", True) else "normal noise"
    if getattr(process, "repeats", False):
        wanted = "noise that repeats no entries"
    if wanted:
        got = f"{type(process).__name__}{instead and '; '}{instead}"
        raise ValueError(f"{where}: expected a process with {wanted}, got {got}")


def check_one_ended(where, process):
    """Raises ValueError for a process with a second endpoint."""
    check_made(where, "process", process, "paired", "jd.processes.VP()")
    if process.paired:
        got = type(process).__name__
        raise ValueError(f"{where}: expected a process without a second endpoint, got {got}, which has y")


def check_order(where, order, orders, name="order"):
    """`order` as an int; raises ValueError unless it is one of the integers `orders`."""
    if isinstance(order, bool) or not isinstance(order, (int, np.integer)) or order not in orders:
        *others, last = orders
        known = f"{', '.join(map(str, others))} or {last}"
        raise ValueError(f"{where}: expected {name} {known}, got {order!r}")
    return int(order)


def check_made(where, name, value, has, example):
    """Raises ValueError for a name or a class in the place of the object itself: `VP` for `VP()`.

    Args:
      where, name: the caller and its argument.
      value: what was given.
      has: an attribute that the object has.
      example: how one is made.
    """
    if isinstance(value, type) or not hasattr(value, has):
        raise ValueError(f"{where}: expected {name} to be an object such as {example}, got {value!r}")


def check_choice(where, name, value, choices):
    """Raises ValueError if `value` is not one of `choices`, naming the nearest."""
    if value not in choices:
        raise ValueError(f"{where}: {unknown_name(name, value, choices)}")


def check_output(where, output, x):
    """A network's output, refused unless it has the structure and shapes of `x`: it would broadcast."""
    expected, got = (jax.tree.map(np.shape, tree) for tree in (x, output))
    if expected != got:
        raise ValueError(f"{where}: expected net(x, c_noise) to return x's shape {expected}, got {got}")
    return output


def unknown_name(kind, name, known):
    """The message for a name that is not in `known`, with the near ones first."""
    known = [str(item) for item in known]
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"unknown {kind} {name!r}; {hint}known: {', '.join(known)}"
