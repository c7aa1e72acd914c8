"""How `jd.sample` walks its rows: one `lax.scan`, and what its gradient remembers of it.

With n rows and a state of one unit, reverse-mode differentiation of the walk holds

    "full"          n states and the activations of n network calls; one more evaluation's work a row
    "checkpointed"  2 sqrt(n) states and one call's activations; each call is repeated twice
    "reversible"    one state and one call's activations; states are computed backwards, exactly
    k               k of each; earlier rows count as constant
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

GRADIENTS = ("full", "checkpointed", "reversible")


def check_gradient(gradient, solver, rows):
    """Raises ValueError for a `gradient` that is none, or that the solver or its plan `rows` cannot have."""
    if gradient == "reversible" and not (hasattr(rows, "unstep") and getattr(solver, "by_rows", False)):
        raise ValueError(
            "sample: expected a reversible solver for gradient='reversible', such as "
            "jd.solvers.reversible_heun() by itself; got one whose steps cannot be undone: use 'checkpointed'"
        )
    number = isinstance(gradient, (int, np.integer)) and not isinstance(gradient, bool)
    if (number and gradient >= 1) or (isinstance(gradient, str) and gradient in GRADIENTS):
        return
    raise ValueError(
        f"sample: expected gradient to be one of {', '.join(GRADIENTS)} or a number k of last evaluations, "
        f"at least 1, got {gradient!r}"
    )


def walk(body, back, carry, rows, gradient):
    """Folds `body` over rows.

    Args:
      body: `((state, path), row) -> (state, path)`; linear in `path`, which it only writes to.
      back: `(state, row) -> state`, what undoes `body`; used by "reversible" alone.
      carry: `(state, path)`.
      rows: pytree of arrays with a leading axis of n rows.
      gradient: see `jd.sample`.

    Returns:
      The last carry.
    """
    n = jax.tree.leaves(rows)[0].shape[0]
    if gradient == "checkpointed":
        return _checkpointed(body, carry, rows, n)
    if gradient == "reversible":
        return _reversible(body, back, carry, rows, n)
    if gradient != "full" and gradient < n:
        carry = _fold(lambda *args: _constant(body(*args)), _constant(carry), _cut(rows, 0, n - gradient))
        rows = _cut(rows, n - gradient, n)
    return _fold(body, carry, rows)


def _fold(body, carry, rows):
    return jax.lax.scan(lambda carry, row: (body(carry, row), None), carry, rows)[0]


def _constant(tree):
    return jax.tree.map(jax.lax.stop_gradient, tree)


def _cut(rows, start, stop):
    return jax.tree.map(lambda leaf: leaf[start:stop], rows)


def _checkpointed(body, carry, rows, n):
    """Chunks of about sqrt(n) rows, each repeated when its gradient is due; the rest is a shorter chunk."""
    one = jax.checkpoint(body, prevent_cse=False)

    @jax.checkpoint
    def chunk(carry, rows):
        return _fold(one, carry, rows)

    size = max(1, round(math.sqrt(n)))
    whole = n - n % size
    chunks = jax.tree.map(lambda leaf: leaf[:whole].reshape(-1, size, *leaf.shape[1:]), rows)
    carry = _fold(chunk, carry, chunks)
    return carry if whole == n else chunk(carry, _cut(rows, whole, n))


def _reversible(body, back, carry, rows, n):
    """The first and the last row are remembered; the others are undone one by one on the way back."""
    if n <= 2:
        return _fold(body, carry, rows)
    row = _row(rows, 0)
    carry = body(carry, row)
    step, of_step = jax.closure_convert(body, carry, row)
    undo, of_undo = jax.closure_convert(back, carry[0], row)
    leaves, structure = jax.tree.flatten(rows)
    real = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]

    def split(leaves):
        return [[leaf for leaf, r in zip(leaves, real, strict=True) if r is want] for want in (True, False)]

    def join(floats, others):
        parts = (iter(others), iter(floats))
        return jax.tree.unflatten(structure, [next(parts[r]) for r in real])

    @jax.custom_vjp
    def run(consts, carry, floats, others):
        return _fold(lambda carry, row: step(carry, row, *consts[0]), carry, join(floats, others))

    def forward(consts, carry, floats, others):
        out = run(consts, carry, floats, others)
        return out, (consts, out[0], floats, others)

    def backward(kept, ct):
        consts, state, floats, others = kept
        blank = jax.tree.map(jnp.zeros_like, ct[1])  # any path will do: the step is linear in it

        def undo_one(carry, row):
            state, ct, ct_consts = carry
            before = undo(state, join(*row), *consts[1])
            _, pull = jax.vjp(
                lambda state, consts, floats: step((state, blank), join(floats, row[1]), *consts),
                before, consts[0], row[0],
            )  # fmt: skip
            ct_state, more, ct_floats = pull(ct)
            return (before, (ct_state, ct[1]), jax.tree.map(jnp.add, ct_consts, more)), ct_floats

        zero = jax.tree.map(jnp.zeros_like, consts[0])
        (_, ct, ct_consts), ct_floats = jax.lax.scan(
            undo_one, (state, ct, zero), (floats, others), reverse=True
        )
        return (ct_consts, jax.tree.map(jnp.zeros_like, consts[1])), ct, ct_floats, [None] * len(others)

    run.defvjp(forward, backward)
    floats, others = split([leaf[1 : n - 1] for leaf in leaves])
    return body(run((of_step, of_undo), carry, floats, others), _row(rows, n - 1))


def _row(rows, i):
    return jax.tree.map(lambda leaf: leaf[i], rows)
