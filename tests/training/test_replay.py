"""A step that was not finite: the examples and leaves that made it so are named."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.training.replay import examine, offence


def test_names_examples_and_leaves():
    seen = {"step": 3, "total": 4}

    def loss(params, batch, keys, strata, step):
        assert (step, strata[1]) == (seen["step"], seen["total"])
        noise = jax.vmap(jax.random.uniform)(keys)
        return jnp.sqrt(batch["x"] * params["root"]) + params["shift"] * noise + strata[0]

    params = {"root": np.float32(1), "shift": np.float32(2)}
    batch = {"x": np.float32([4, 0, -1, 9])}  # the root of 0 has a value and no gradient
    key = jax.random.key(5)
    finding = examine(loss, params, batch, key, 3)
    assert (finding.bad_loss, finding.bad_gradient) == ([2], [1])
    assert finding.leaves == ["root"] and finding.params == []
    own = jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, 3), 3))
    np.testing.assert_allclose(finding.loss[3], 3 + 2 * own + 3, rtol=1e-6)

    broken = examine(loss, params | {"shift": np.float32(np.nan)}, batch, key, 3)
    assert broken.params == ["shift"] and broken.bad_loss == [0, 1, 2, 3]


def test_a_record_holds_the_batch_of_its_step():
    from jaxdiff.training.feed import make_feed

    data = {"x": np.arange(40.0).reshape(20, 2)}
    record = offence(data, 8, 3, "stop")(5)
    np.testing.assert_array_equal(record["indices"], make_feed(data, 8, 3).items(4, 1)[0])
    assert (record["step"], record["nonfinite"]) == (5, "stop")
    assert jax.random.wrap_key_data(jnp.uint32(record["key"])) == jax.random.key(3)
