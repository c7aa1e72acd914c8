"""The frozen pytree dataclass that processes, solvers and tables are made of."""

import dataclasses

import jax


def static_field(**kwargs):
    """A dataclass field that is part of the type under `jit`: compared and hashed, never traced."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


def dataclass(cls):
    """Makes `cls` a frozen dataclass and a JAX pytree.

    Fields are leaves (or subtrees), so that `jit`, `grad` and `vmap` reach them; fields made with
    `static_field()` are part of the tree's structure. `replace(**changes)` returns a changed copy.
    Checks in `__post_init__` run when a user constructs the object, not when JAX rebuilds it.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    static = [f.name for f in dataclasses.fields(cls) if f.metadata.get("static")]
    leaves = [f.name for f in dataclasses.fields(cls) if not f.metadata.get("static")]

    def flatten_with_keys(self):
        children, meta = flatten(self)
        return [(jax.tree_util.GetAttrKey(n), child) for n, child in zip(leaves, children, strict=True)], meta

    def flatten(self):
        values = vars(self)  # as they are stored: a process reads known jax arrays as numpy's
        return [values[n] for n in leaves], tuple(values[n] for n in static)

    def unflatten(meta, children):
        self = object.__new__(cls)
        for name, value in zip(leaves + static, (*children, *meta), strict=True):
            object.__setattr__(self, name, value)
        return self

    def equal(self, other):
        if type(self) is not type(other):
            return NotImplemented
        mine, theirs = vars(self), vars(other)
        return all(mine[n] is theirs[n] or mine[n] == theirs[n] for n in leaves + static)

    cls.__eq__ = equal
    cls.replace = lambda self, **changes: type(self)(**(vars(self) | changes))
    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
