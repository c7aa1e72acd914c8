"""Options by name: values of the kind of the defaults in whose place they stand."""

import inspect
from numbers import Integral, Real

import numpy as np

_KINDS = (  # a bool is an integer of Python's, an integer a real number
    ((bool, np.bool_), "True or False"), (Integral, "an integer"), (Real, "a number"), (str, "a name"),
)


def check_options(where, function, options, several=False):
    """Raises ValueError for the first of `options` that is of another kind than its default in `function`.

    Args:
      where: whose options they are, for the message.
      function: what takes them.
      options: dict; those without a default, or with another one than a number, a bool or a name, may be
        anything.
      several: whether a tuple or list of values may stand for one.
    """
    parameters = inspect.signature(function).parameters
    for name, value in options.items():
        default = parameters[name].default if name in parameters else None
        for kind, words in _KINDS:
            if isinstance(default, kind):
                values = value if several and isinstance(value, (tuple, list)) else (value,)
                if not all(_is(kind, one) for one in values):
                    raise ValueError(f"{where}: expected {name} to be {words}, got {value!r}")
                break


def _is(kind, value):
    return isinstance(value, kind) and (kind is _KINDS[0][0] or not isinstance(value, _KINDS[0][0]))
