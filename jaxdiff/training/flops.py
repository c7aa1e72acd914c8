"""Floating-point operations of an update, and how many a device can do."""

import jax
import jax.numpy as jnp

from jaxdiff.core import on_host

# dense bfloat16, per jax device, from the makers' data sheets; the longest beginning of the name counts
PEAK_FLOPS = {
    "TPU v2": 22.5e12, "TPU v3": 61.5e12, "TPU v4": 275e12, "TPU v4 lite": 138e12, "TPU v5": 459e12,
    "TPU v5p": 459e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v6 lite": 918e12, "TPU v6e": 918e12,
    "Tesla T4": 65e12, "Tesla V100": 125e12, "NVIDIA A10": 125e12, "NVIDIA A10G": 70e12,
    "NVIDIA A100": 312e12, "NVIDIA L4": 121e12, "NVIDIA L40": 181e12, "NVIDIA L40S": 362e12,
    "NVIDIA H100": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA H200": 989e12, "NVIDIA B200": 2250e12,
}


def peak_flops(kind):
    """FLOP/s of a device of `jax.Device.device_kind`; None where it is not known, as of every CPU."""
    known = [name for name in PEAK_FLOPS if kind.lower().startswith(name.lower())]
    return PEAK_FLOPS[max(known, key=len)] if known else None


def update_flops(update, feed, state, items, batch_size):
    """Floating-point operations of one update of the whole batch, as XLA's cost analysis counts them.

    The program is lowered for one device of the host and not compiled: what parallelism repeats is not
    counted, what rematerialisation repeats is, and a loop counts once, so `update` has to be made without
    `accumulate`.

    Args:
      update: of `make_update`.
      feed: of `make_feed`.
      state: arrays or shapes.
      items: of the feed, for any number of updates and this process's rows.
      batch_size: of the global batch.

    Returns:
      A float, or None where it is not told: of kernels that are of accelerators alone.
    """
    def run(state, resident, item, key):
        return update(state, feed.gather(resident, item), jax.random.wrap_key_data(key))

    def shapes(tree):
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)), tree)

    item = jax.tree.map(lambda a: jax.ShapeDtypeStruct((batch_size, *a.shape[2:]), a.dtype), items)
    key = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    try:
        with on_host():  # the clients of accelerators count none
            costs = jax.jit(run).lower(shapes(state), shapes(feed.resident), item, key).cost_analysis()
    except (NotImplementedError, ValueError):
        return None
    return (costs or {}).get("flops")
