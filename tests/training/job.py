"""One process of a small run, for the tests of several processes; logs which examples it supplies."""

import argparse
import json
import sys

import numpy as np

from jaxdiff.training import distributed

parser = argparse.ArgumentParser()
parser.add_argument("--out")
parser.add_argument("--ids")
parser.add_argument("--mesh", default="")
parser.add_argument("--parallel", default="auto")
parser.add_argument("--pause", type=float, default=0.0)
parser.add_argument("--fail-at", type=int, default=-1)
parser.add_argument("--updates-per-dispatch", type=int, default=1)
parser.add_argument("--woven", action="store_true", help="a mesh in which a process has no neighbours")
parser.add_argument("--coordinator")
for name in ("--processes", "--process-id", "--heartbeat"):
    parser.add_argument(name, type=int)
given = parser.parse_args()
distributed.join(given.coordinator, given.processes, given.process_id, given.heartbeat)

import time  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402

from jaxdiff import training  # noqa: E402
from jaxdiff.training import loop, mesh  # noqa: E402

SIZE, STEPS, BATCH = 50, 25, 16  # eight epochs of examples that no batch divides
ORDINARY = loop.make_feed


def logging_feed(data, *arguments):
    feed = ORDINARY(data, *arguments)

    def items(step, count):
        rows = feed.items(step, count)
        if step == given.fail_at and given.process_id == 1:
            raise RuntimeError("a fault on purpose")
        with open(f"{given.ids}-{given.processes}-{given.process_id}", "a") as file:
            file.write(json.dumps([step, np.asarray(rows).ravel().tolist()]) + "\n")
        time.sleep(given.pause)
        return rows

    return feed._replace(items=items)


def loss(params, batch, keys, strata, step):
    index, total = strata
    noise = jax.vmap(lambda key: jax.random.normal(key, (64,)))(keys)
    x = batch["x"] + ((index + 0.5) / total)[:, None] * noise
    return jnp.mean((jnp.tanh(x @ params["in"]) @ params["out"] - noise) ** 2, axis=-1)


def woven(shape, devices, **settings):
    """As on a TPU slice, where wires lead from host to host."""
    return np.array(devices).reshape(given.processes, -1).T.reshape(shape)


loop.make_feed = logging_feed
if given.woven:
    mesh.create_device_mesh = woven
rng = np.random.default_rng(0)
start = {name: rng.standard_normal((64, 64)).astype(np.float32) / 8 for name in ("in", "out")}
data = {"x": rng.standard_normal((SIZE, 64)).astype(np.float32)}
try:
    with distributed.together():
        state = training.fit(
            start, loss, data, steps=STEPS, batch_size=BATCH, out=given.out, mesh=given.mesh, log_every=1,
            optimizer=optax.sgd(0.3, momentum=0.9), parallel=given.parallel, checkpoint_every=5,
            config={"steps": STEPS}, progress=False, updates_per_dispatch=given.updates_per_dispatch,
        )
        print("sha256", training.fingerprint(state), flush=True)
except training.Interrupted as stop:
    print(f"interrupted at {stop.step}", flush=True)
    sys.exit(128 + stop.number)
