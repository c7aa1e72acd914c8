"""Any profile of averages, out of a run's directory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.training import adamw, fit, synthesize
from jaxdiff.training.snapshots import save_snapshot

X = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)


def loss(params, batch, keys, strata, step):
    noise = jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)
    output = batch["x"] @ params["net"]["w"] + params["net"]["b"][None]
    return jnp.mean((output - jnp.sin(step / 40) - noise) ** 2, -1)


def train(ema, out=None, **options):
    params = {"net": {"w": np.eye(4, dtype=np.float32), "b": np.ones(4, np.float32)}}
    return fit(params, loss, {"x": X}, steps=320, batch_size=16, optimizer=adamw(0.02), ema=ema, out=out,
               progress=False, parallel="jit", checkpoint_every=1000, **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    return out, train((20, "power:0.05", "power:0.10"), out)


def vector(params):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])


@pytest.mark.slow
def test_a_profile_that_was_not_kept_is_the_one_tracked_in_the_run(run):
    out, state = run
    assert len(list((out / "snapshots").iterdir())) == 32
    early = []
    tracked = train(("power:0.07", "power:0.15"), picture_every=200, picture=lambda _, e: early.append(e))
    narrow, wide = (vector(average) for average in state.ema[1:])
    spread = np.abs(narrow - wide).max()
    for width, average in zip(("0.07", "0.15"), tracked.ema, strict=True):
        step, params = synthesize(out, f"power:{width}")
        assert step == 320 and jax.tree.structure(params) == jax.tree.structure(state.params)
        assert np.abs(vector(params) - vector(average)).max() < 0.02 * spread
        assert np.abs(vector(average) - narrow).max() > 0.2 * spread, "another profile would be seen"
    step, params = synthesize(out, "power:0.07", 200)
    assert step == 200 and np.abs(vector(params) - vector(early[0])).max() < 0.02 * spread
    np.testing.assert_allclose(vector(synthesize(out, "power:0.05")[1]), narrow, atol=1e-4 * spread)


def test_faults_are_named(run, tmp_path):
    out, state = run
    with pytest.raises(ValueError, match="expected a profile power:WIDTH, got '500'"):
        synthesize(out, "500")
    with pytest.raises(ValueError, match="last snapshot, 320, got 321"):
        synthesize(out, "power:0.07", 321)
    with pytest.raises(ValueError, match="expected snapshots in .*--ema 500 power:0.05"):
        synthesize(tmp_path, "power:0.07")
    from jaxdiff.training import ema

    profiles = [ema.HalfLife(20.0), ema.power(0.05), ema.power(0.1)]
    for step in (10, 20):
        save_snapshot(tmp_path, step, profiles, state.ema)
    path = tmp_path / "snapshots" / "00000020.npz"
    content = bytearray(path.read_bytes())
    for damage in (content[: len(content) // 2], content[:120] + bytes([content[120] ^ 1]) + content[121:]):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match="damaged .*00000020.npz"):
            synthesize(tmp_path, "power:0.07")
