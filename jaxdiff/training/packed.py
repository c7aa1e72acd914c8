"""A tree of arrays in one vector, for networks whose arrays are many and small.

An elementwise optimizer is then one loop over a vector, a gradient one array to be summed over the devices,
and a call passes a handful of arrays instead of hundreds.
"""

import math
from typing import NamedTuple

import jax
import numpy as np

from jaxdiff.core import dataclass, namespace, static_field

MOST = 2**20  # scalars: of networks three times as large the copies cost more than the number of arrays


class Form(NamedTuple):
    """What a tree of arrays is beside its numbers.

    Attributes:
      structure: of the tree.
      shapes: of its leaves.
    """

    structure: object
    shapes: tuple


@dataclass
class Packed:
    """A tree whose leaves lie one after the other in a vector.

    Attributes:
      vector: `(size,)`.
      form: of the tree.
    """

    vector: jax.Array
    form: Form = static_field()


def form_of(params):
    """The `Form` of parameters to be packed; None for one array, a large network or several dtypes."""
    leaves = jax.tree.leaves(params)
    dtypes = {leaf.dtype for leaf in leaves}
    if len(leaves) < 2 or len(dtypes) > 1 or sum(leaf.size for leaf in leaves) > MOST:
        return None
    return _form(params)


def pack(tree, form):
    """`tree` with every part of a form, such as parameters, averages and moments of a state, `Packed`."""

    def fits(part):
        return _form(part) == form

    def join(part):
        leaves = jax.tree.leaves(part)
        return Packed(namespace(*leaves).concatenate([leaf.reshape(-1) for leaf in leaves]), form)

    return jax.tree.map(lambda part: join(part) if fits(part) else part, tree, is_leaf=fits)


def unpack(tree):
    """`tree` with every `Packed` part as it was; of numpy arrays, as views."""

    def cut(part):
        ends = np.cumsum([math.prod(shape) for shape in part.form.shapes])
        pieces = namespace(part.vector).split(part.vector, ends[:-1])
        leaves = [piece.reshape(shape) for piece, shape in zip(pieces, part.form.shapes, strict=True)]
        return jax.tree.unflatten(part.form.structure, leaves)

    return jax.tree.map(lambda part: cut(part) if _is_packed(part) else part, tree, is_leaf=_is_packed)


def pack_like(tree, other):
    """`tree` packed where `other`, of the same numbers, is."""
    return pack(tree, other.form) if _is_packed(other) else tree


def _form(tree):
    leaves, structure = jax.tree.flatten(tree)
    return Form(structure, tuple(np.shape(leaf) for leaf in leaves))


def _is_packed(part):
    return isinstance(part, Packed)
