"""Operations are counted; peaks are looked up by the device's name."""

import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff.training import init_state, make_update
from jaxdiff.training.feed import make_feed
from jaxdiff.training.flops import peak_flops, update_flops


def test_two_products_a_layer_are_counted():
    def loss(params, batch, keys, strata, step):
        return jnp.sum(batch["x"] @ params["w"], axis=-1)

    optimizer = optax.sgd(0.1)
    feed = make_feed({"x": np.ones((100, 64), np.float32)}, 16, 0)  # the rows of one process of two
    state = init_state({"w": np.ones((64, 256), np.float32)}, optimizer, ())
    counted = update_flops(make_update(loss, optimizer), feed, state, feed.items(0, 3), 32)
    products = 2 * (2 * 32 * 64 * 256)  # forward, and by the weights
    assert products < counted < 1.2 * products


def test_the_longest_name_counts():
    kinds = {
        "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA A100-SXM4-40GB": 312e12,
        "NVIDIA A10G": 70e12, "NVIDIA L4": 121e12, "TPU v5 lite": 197e12, "TPU v4": 275e12, "cpu": None,
    }
    assert {kind: peak_flops(kind) for kind in kinds} == kinds
