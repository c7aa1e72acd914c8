import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jaxdiff as jd
from jaxdiff.core import fold_in
from jaxdiff.training import denoising_objective

PROCESS, VELOCITY = jd.processes.RectifiedFlow(), jd.parameterizations.velocity()
BATCH = {"x": np.arange(12, dtype=np.float32).reshape(6, 2), "label": np.arange(6, dtype=np.int32)}
KEYS = fold_in(jax.random.key(0), np.arange(6))
STRATA = (np.arange(6, dtype=np.int32), 6)


class Spy:
    """A network whose output is zero and which keeps what it was called with."""

    def apply(self, variables, x, c_noise, condition=None, *, keys=None):
        self.seen = {"x": x, "c_noise": c_noise, "condition": condition, "keys": keys}
        return jnp.zeros_like(x)


def call(batch=BATCH, keys=KEYS, strata=STRATA, step=0, **options):
    spy = Spy()
    loss = denoising_objective(spy, PROCESS, VELOCITY, **options)
    return loss({}, batch, keys, strata, step), spy.seen


def test_it_is_the_denoising_loss_of_the_network():
    losses, seen = call()
    expected = jd.losses.denoising(
        lambda x, c: jnp.zeros_like(x), fold_in(KEYS, 3), BATCH["x"],
        process=PROCESS, parameterization=VELOCITY,
    )
    np.testing.assert_array_equal(losses, expected)
    np.testing.assert_array_equal(seen["condition"]["label"], BATCH["label"])


def test_an_example_has_the_same_loss_and_dropout_key_in_any_part_of_the_batch():
    @jax.jit
    def both(keys, again):
        def seen_by(*arguments):
            losses, seen = call(*arguments, label_drop=0.5, null_label=9)
            return losses, jax.random.key_data(seen["keys"]), seen["condition"]["label"]

        part = {name: a[2:5] for name, a in BATCH.items()}
        return seen_by(BATCH, keys), seen_by(part, again[2:5], (np.arange(2, 5), 6))

    whole, cut = both(KEYS, jax.random.clone(KEYS))
    np.testing.assert_allclose(cut[0], whole[0][2:5], rtol=1e-6)
    for one, other in zip(cut[1:], whole[1:], strict=True):
        np.testing.assert_array_equal(one, other[2:5])


def test_labels_are_dropped_at_the_given_rate():
    batch = {"x": np.zeros((2000, 2), np.float32), "label": np.full(2000, 3, np.int32)}

    @jax.jit
    def labels_of(key):
        keys, strata = fold_in(key, np.arange(2000)), (np.arange(2000), 2000)
        return call(batch, keys, strata, label_drop=0.25, null_label=9)[1]["condition"]["label"]

    label = np.asarray(labels_of(jax.random.key(1)))
    assert set(np.unique(label)) == {3, 9}
    assert abs(np.mean(label == 9) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 2000)
    assert set(np.unique(call(label_drop=1.0, null_label=9)[1]["condition"]["label"])) == {9}


@pytest.mark.parametrize("dtype, null", [(np.uint8, 256), (np.int8, 128), (np.int32, 9)])
def test_the_null_class_fits_labels_of_every_dtype(dtype, null):
    last, own = np.full(6, min(null, 256) - 1, dtype), np.float32
    for label in (last, last[:, None]):
        _, seen = call(BATCH | {"label": label}, label_drop=1.0, null_label=null)
        np.testing.assert_array_equal(seen["condition"]["label"], np.full(label.shape, null))
    _, seen = call(BATCH | {"label": last.astype(own)}, label_drop=1.0, null_label=-0.5)
    np.testing.assert_array_equal(seen["condition"]["label"], np.full(6, -0.5, own))


def test_augmented_data_come_with_their_vector():
    def double(keys, x):
        return 2 * x, jnp.ones((len(x), 3))

    losses, seen = call(augment=double)
    twice, _ = call({"x": 2 * BATCH["x"]})
    np.testing.assert_allclose(losses, twice, rtol=1e-6)
    assert seen["condition"]["vector"].shape == (6, 3)
    _, seen = call(augment=lambda keys, x: (x, None))
    assert "vector" not in seen["condition"]


def test_augmentation_ends_at_its_step():
    def double(keys, x):
        return 2 * x, jnp.ones((len(x), 3))

    plain, _ = call()
    for step, on in ((9, True), (10, False)):
        losses, seen = call(augment=double, augment_until=10, step=jnp.int32(step))
        assert np.all(seen["condition"]["vector"] == on)
        assert np.allclose(losses, plain, rtol=1e-6) is not on


def test_augmentation_spares_examples_of_little_noise_and_the_times_keep_their_law():
    def double(keys, x):
        return 2 * x, jnp.ones((len(x), 3))

    process = jd.processes.EDM(t_min=0.01, t_max=30.0)
    parameterization, drawn = jd.parameterizations.edm(), jd.times.log_normal(mean=-1.0, std=1.0)
    options = {"times": drawn, "augment": double, "augment_above": 0.3, "augment_until": 6}

    @jax.jit
    def seen_at(step):
        spy, index = Spy(), np.arange(64)
        loss = denoising_objective(spy, process, parameterization, **options)
        loss({}, {"x": jnp.ones((64, 2))}, fold_in(jax.random.key(2), index), (index, 64), step)
        return {name: spy.seen[name] for name in ("x", "c_noise", "condition")}

    seen = jax.device_get(seen_at(5))
    sigma = np.exp(4 * seen["c_noise"])
    # stratified: just that share of the examples, up to the one whose stratum the level cuts
    share = scipy.stats.norm.cdf((np.log(0.3) + 1.0) / 1.0)
    assert abs(np.sum(sigma < 0.3) - 64 * share) <= 1
    np.testing.assert_array_equal(seen["condition"]["vector"][:, 0], sigma > 0.3)
    assert not np.any(seen_at(6)["condition"]["vector"])
    # the images too: the input times sqrt(sigma^2 + sigma_data^2) has the image as its mean
    mean = np.mean(seen["x"] * np.sqrt(sigma**2 + 0.25)[:, None], axis=1)
    little, middle = sigma < 0.2, (sigma > 0.3) & (sigma < 0.5)
    assert abs(mean[little].mean() - 1) < 0.15 and abs(mean[middle].mean() - 2) < 0.35


def test_a_noise_level_for_augmentation_is_above_zero():
    with pytest.raises(ValueError, match="augment_above"):
        denoising_objective(Spy(), PROCESS, VELOCITY, augment_above=0.0)


def test_data_without_labels_have_no_condition():
    assert call({"x": BATCH["x"]})[1]["condition"] is None


@pytest.mark.parametrize("options", [{"label_drop": 0.1}, {"label_drop": 1.5, "null_label": 3}])
def test_labels_cannot_be_dropped_without_a_null_class_or_beyond_one(options):
    with pytest.raises(ValueError, match="label_drop"):
        denoising_objective(Spy(), PROCESS, VELOCITY, **options)


def test_the_loss_tells_the_loop_how_many_classes_there_are():
    model = jd.models.build("MLP-S", sample_shape=(2,), num_classes=3)
    assert denoising_objective(model, PROCESS, VELOCITY).num_classes == 3
    assert denoising_objective(Spy(), PROCESS, VELOCITY).num_classes is None


@pytest.mark.keys_again
@pytest.mark.parametrize("options", [{}, {"augment": lambda keys, x: (x, None), "augment_above": 0.5}])
def test_noise_levels_sort_the_examples_by_the_times_of_the_loss(options):
    """The network, told c_noise, returns it: the times of the loss are those that sorted it."""
    class Tells:
        def apply(self, variables, x, c_noise, condition, keys):
            seen.append(c_noise)
            return x

    seen, size = [], 64
    loss = denoising_objective(Tells(), PROCESS, VELOCITY, **options)
    levels = loss.noise_levels
    cuts = PROCESS.t_min + (PROCESS.t_max - PROCESS.t_min) * np.arange(7, 0, -1) / 8
    np.testing.assert_allclose(levels.edges[1:-1], PROCESS.log_snr(cuts), atol=1e-5)
    assert levels.edges.shape == (9,) and np.all(np.diff(levels.edges) > 0)

    @jax.jit
    def all_of(key):
        keys, strata = jax.random.split(key, size), (np.arange(size), size)
        loss({}, {"x": jnp.zeros((size, 2))}, keys, strata, 0)
        t = levels.times(keys, strata)
        told = VELOCITY.coefficients(PROCESS, t).c_noise
        return t, told, seen[0], levels.sums(t, keys, strata)

    t, told, heard, (sums, counts) = all_of(jax.random.key(0))
    np.testing.assert_array_equal(told, heard)
    np.testing.assert_array_equal(counts, 8)  # equal shares: the times are stratified and uniform
    order = np.sort(np.asarray(t))[::-1].reshape(8, 8)  # the least log-SNR first
    np.testing.assert_allclose(sums, order.sum(1), rtol=1e-5)
