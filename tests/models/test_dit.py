"""Patches, positions and the published size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import models
from jaxdiff.models import dit


def test_patchify_orders_tokens_by_row_and_is_inverted():
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    tokens = np.asarray(jax.jit(lambda x: dit.patchify(x, 2))(x))
    assert tokens.shape == (2, 6, 12)
    np.testing.assert_array_equal(tokens[1, 4], x[1, 2:4, 2:4].reshape(-1))
    np.testing.assert_array_equal(jax.jit(lambda tokens: dit.unpatchify(tokens, x.shape, 2))(tokens), x)


def test_sincos_positions_name_row_and_column():
    table = dit.sincos_positions(3, 5, 8).reshape(3, 5, 8)
    assert len(np.unique(table.reshape(15, 8), axis=0)) == 15
    np.testing.assert_allclose(table[2, 3, :2], np.sin([2.0, 0.02]), rtol=1e-5)
    np.testing.assert_allclose(table[2, 3, 6:], np.cos([3.0, 0.03]), rtol=1e-5)


def swap(x):
    """Exchanges the first and the last patch."""
    out = x.copy()
    out[:, :2, :2], out[:, 2:, 2:] = x[:, 2:, 2:], x[:, :2, :2]
    return out


@pytest.mark.slow
@pytest.mark.parametrize("positions", dit.POSITIONS)
def test_positions_are_used(positions, monkeypatch):
    model = models.DiT(patch=2, width=16, depth=1, heads=2, positions=positions)
    x = np.random.default_rng(0).normal(size=(1, 4, 4, 1)).astype(np.float32)
    params = jax.jit(model.init)(jax.random.key(1), x, 0.0)
    params = jax.tree.map(
        lambda p: np.asarray(p) + 0.3 * np.cos(np.arange(p.size, dtype=np.float32)).reshape(p.shape), params
    )

    def gap():
        both = jax.jit(lambda x: model.apply(params, x, 0.0))(np.concatenate([x, swap(x)]))
        one, other = np.split(np.asarray(both), 2)
        return np.abs(other - swap(one)).max()

    assert gap() > 1e-3
    monkeypatch.setattr(dit, "sincos_positions", lambda h, w, f: np.zeros((h * w, f), np.float32))
    monkeypatch.setattr(dit, "rotary_angles", lambda h, w, f: np.zeros((h * w, f // 2), np.float32))
    assert gap() < 1e-5


@pytest.mark.slow
def test_published_size():
    model = models.build("DiT-S/2", sample_shape=(32, 32, 4), num_classes=1000)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 4)), 0.0)
    size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    learned_sigma = (384 + 1) * 2 * 2 * 4  # the published network also predicts variances,
    fixed_positions = 256 * 384  # and counts its table of positions
    assert size + learned_sigma + fixed_positions == 32_963_360


@pytest.mark.parametrize(
    "fields, shape, message",
    [
        ({"patch": 4}, (8, 6, 1), "divisible by the patch 4, got 8 x 6"),
        ({}, (8, 8), r"\(height, width, channels\)"),
        ({"positions": "learned"}, (8, 8, 1), "'learned'"),
        ({"width": 20, "heads": 3}, (8, 8, 1), "width 20 and 3 heads"),
        ({"width": 12, "heads": 2, "positions": "rotary"}, (8, 8, 1), "width 12 and 2 heads"),
    ],
)
def test_bad_shapes(fields, shape, message):
    with pytest.raises(ValueError, match=message):
        models.DiT(**fields).init(jax.random.key(0), jnp.zeros((1, *shape)), 0.0)
