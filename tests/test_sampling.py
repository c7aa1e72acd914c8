import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

VP = jd.processes.VP()
GRID = jd.grids.quadratic(VP, 7)
KEYS = jax.random.split(jax.random.key(1), 16)
TARGET = jd.testing.gaussian_mixture(
    np.array([[1.0, 0.0], [-1.0, 0.5]]), np.array([[0.1, 0.2], [0.05, 0.1]]), np.array([0.4, 0.6])
)
DENOISE = TARGET.denoiser(VP)
BRIDGE = dict(process=jd.processes.BrownianBridge(), grid=jd.grids.uniform(jd.processes.BrownianBridge(), 3))
ODE, SDE = jd.solvers.dpmpp_multistep(2), jd.solvers.ancestral()


def test_a_sample_is_its_keys_alone():
    def run(keys):
        return jd.sample(keys, DENOISE, VP, SDE, GRID, shape=(2,))

    jd.testing.invariance(jax.jit(run), KEYS)
    eager = np.asarray(run(KEYS))
    np.testing.assert_allclose(jax.jit(run)(KEYS), eager, rtol=1e-5, atol=1e-5)
    assert not np.allclose(eager[0], eager[1])


def test_eight_devices_give_the_images_of_one():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    run = jax.jit(lambda keys: jd.sample(keys, DENOISE, VP, SDE, GRID, shape=(2,)))
    sharded = run(jax.device_put(KEYS, spread))
    np.testing.assert_allclose(sharded, run(KEYS), rtol=1e-5, atol=1e-6)


def test_no_key_is_used_twice():
    jd.testing.key_reuse(lambda keys: jd.sample(keys, DENOISE, VP, SDE, GRID, shape=(2,)), KEYS)


def test_path_is_saved_at_grid_points():
    x = np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)

    def run(x, solver):
        whole = [jd.sample(None, DENOISE, VP, solver, GRID, x=x, save=k) for k in ("all", "final", 3)]
        return *whole, jd.sample(None, DENOISE, VP, solver, GRID[:4], x=x)

    for solver in (ODE, jd.solvers.heun()):
        path, final, some, part = map(np.asarray, jax.jit(functools.partial(run, solver=solver))(x))
        assert path.shape == (8, 16, 2)
        np.testing.assert_array_equal(path[0], x)
        np.testing.assert_allclose(path[-1], final, rtol=1e-6)
        np.testing.assert_allclose(some, path[[0, 3, 6, 7]], rtol=1e-6)
    # a path's point is the sample of the shortened grid
    np.testing.assert_allclose(path[3], part, rtol=1e-5, atol=1e-6)


def test_replayed_noise_gives_the_same_sample():
    def noise_of(key):
        steps = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), (2,)))(jnp.arange(1, 8))
        return VP.prior(jax.random.fold_in(key, 0), (2,)), steps

    x, noise = jax.jit(jax.vmap(noise_of, out_axes=(0, 1)))(KEYS)
    drawn = jd.sample(KEYS, DENOISE, VP, SDE, GRID, shape=(2,))
    np.testing.assert_allclose(jd.sample(noise, DENOISE, VP, SDE, GRID, x=x), drawn, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"noise to replay of shape \(7, 16, 2\).*got shape \(6, 16, 2\)"):
        jd.sample(noise[1:], DENOISE, VP, SDE, GRID, x=x)


def test_no_noise_is_drawn_where_the_solver_is_deterministic():
    text = str(jax.make_jaxpr(lambda x: jd.sample(KEYS, DENOISE, VP, ODE, GRID, x=x))(jnp.ones((16, 2))))
    assert "random_bits" not in text
    text = str(jax.make_jaxpr(lambda x: jd.sample(KEYS, DENOISE, VP, SDE, GRID, x=x))(jnp.ones((16, 2))))
    assert "random_bits" in text


def test_pytrees_are_walked_leaf_by_leaf():
    x = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)

    def denoise(tree, t):
        return {"a": DENOISE(tree["a"], t), "b": 0.5 * tree["b"]}

    @jax.jit
    def run(keys, x):
        tree = {"a": x, "b": x[:, 0]}
        out = jd.sample(None, denoise, VP, ODE, GRID, x=tree, save="all")
        alone = jd.sample(None, DENOISE, VP, ODE, GRID, x=x, save="all")
        return out, alone, jd.sample(keys, denoise, VP, SDE, GRID, x=tree)

    out, alone, _ = run(KEYS[:4], x)
    np.testing.assert_allclose(out["a"], alone, rtol=1e-6)
    assert out["b"].shape == (8, 4)


def test_state_is_float32_around_a_bfloat16_network():
    def denoise(x, t):
        return DENOISE(x.astype(jnp.bfloat16), t).astype(jnp.bfloat16)

    out = jd.sample(KEYS, denoise, VP, ODE, GRID, x=jnp.ones((16, 2), jnp.bfloat16))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, jd.sample(KEYS, DENOISE, VP, ODE, GRID, x=jnp.ones((16, 2))), atol=0.1)


@pytest.mark.slow
def test_gradients_reach_start_grid_and_denoiser():
    grid, x = GRID.astype(np.float32), np.ones((3, 2), np.float32)

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
    def total(shift, grid, x):
        denoise = lambda x, t: DENOISE(x, t) + shift  # noqa: E731
        return jnp.sum(jd.sample(None, denoise, VP, ODE, grid, x=x) ** 2)

    width, none = 1e-2, np.zeros_like(grid)

    def slope(shift, move):
        ends = [np.asarray(total(0.1 + sign * shift, grid + sign * move, x)[0]) for sign in (1, -1)]
        return (ends[0] - ends[1]) / (2 * width)

    slopes = jax.tree.map(np.asarray, total(0.1, grid, x)[1])
    assert all(np.all(np.isfinite(s)) for s in slopes)
    np.testing.assert_allclose(slopes[0], slope(width, none), rtol=2e-2)
    third = none.copy()
    third[3] = width
    np.testing.assert_allclose(slopes[1][3], slope(0.0, third), rtol=5e-2, atol=1e-3)


def test_progress_works_inside_jit(capsys):
    run = jax.jit(lambda k: jd.sample(k, DENOISE, VP, ODE, GRID, shape=(2,), progress=True))
    jax.block_until_ready(run(KEYS))
    jax.effects_barrier()
    assert "7/7" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(keys=KEYS[0], shape=(2,)), r"expected \(batch,\) keys.*got shape \(\)"),
        (dict(keys=None, shape=(2,)), r"expected \(batch,\) keys"),
        (dict(keys=np.ones(16), shape=(2,)), "expected a key of jax.random.key.*got float64"),
        (dict(keys=KEYS, shape=(2,), solver="heun"), "expected a solver of jd.solvers.*got 'heun'"),
        (dict(keys=KEYS), "either shape="),
        (dict(keys=KEYS, shape=(2,), x=jnp.ones((16, 2))), "not both"),
        (dict(keys=KEYS, shape=2), "shape to be a tuple"),
        (dict(keys=KEYS, shape=(2,), save="every"), "'final', 'all', 'state' or an integer k, got 'every'"),
        (dict(keys=KEYS, shape=(2,), save=0), "got 0"),
        (dict(keys=KEYS, shape=(2,), grid=GRID[2:]), "the prior is at t_max = 1"),
        (dict(keys=None, x=jnp.ones((16, 2)), solver=SDE), "this solver draws noise"),
        (dict(keys=KEYS[:3], x=jnp.ones((16, 2)), solver=SDE), r"\(16,\) keys, got shape \(3,\)"),
        (dict(keys=KEYS, shape=(2,), y=jnp.ones((16, 2))), "no second endpoint"),
        (dict(keys=KEYS, shape=(2,), process=jd.processes.VP), "process to be an object such as jd.proc"),
        (dict(keys=KEYS, shape=(2,), denoise=None), r"denoise to be a function of \(x, t\), got None"),
        (dict(keys=KEYS, shape=(2,), grid="karras"), r"expected \(steps \+ 1,\) times, .* got 'karras'"),
        (dict(keys=KEYS, shape=(2,), grid=jd.grids.karras), r"grid: expected \(steps \+ 1,\) times"),
        (dict(keys=KEYS, x=np.full((16, 2), 128)), "expected a floating x, got int32; scale it"),
        (dict(keys=KEYS, shape=(2,), y=jnp.ones((3, 2))) | BRIDGE, r"y of x's shape \(16, 2\), got \(3, 2\)"),
        (dict(keys=KEYS, x=jnp.ones((16, 2)), y=jnp.ones((1, 2))) | BRIDGE, r"got \(1, 2\); pass one per"),
    ],
)
def test_wrong_arguments_are_met_before_compilation(arguments, message):
    settings = dict(denoise=DENOISE, process=VP, solver=ODE, grid=GRID) | arguments
    with pytest.raises(ValueError, match=message):
        jd.sample(**settings)


def test_raw_keys_are_keys_too():
    raw = jax.vmap(jax.random.key_data)(KEYS)
    found, typed = (jd.sample(keys, DENOISE, VP, ODE, GRID, shape=(2,)) for keys in (raw, KEYS))
    np.testing.assert_array_equal(found, typed)
