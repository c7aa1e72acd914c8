"""Bytes that a data-parallel step moves, and memory per device, on up to 256 devices that need not be there.

Each count of devices is compiled ahead of time in a process of its own, from the update that `fit` runs:

    python benchmarks/scaling.py [--model "MLP-S(width=256)"] [--batch 1024] [--save]

The projected efficiency is that of a ring all-reduce that nothing hides, a lower bound, at the stated peak
and interconnect. A table takes under a minute for an MLP.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys

COUNTS = (1, 8, 64, 256)
RESULTS = pathlib.Path(__file__).parent / "results" / "scaling.md"
WIDTHS = {"f64": 8, "s64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s8": 1, "u8": 1, "pred": 1}
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def collective_bytes(text):
    """Bytes of the results of each kind of collective in a compiled program's text."""
    total = dict.fromkeys(KINDS, 0)
    for line in text.splitlines():
        if match := re.search(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(", line):
            for kind, sides in re.findall(r"(\w+)\[([\d,]*)\]", match[1]):
                count = 1
                for side in filter(None, sides.split(",")):
                    count *= int(side)
                total[match[2]] += count * WIDTHS.get(kind, 0)
    return total


def measure(model, batch):
    """Figures of one step on all devices of this process; `batch` is that of a device."""
    import jax
    import jax.numpy as jnp

    import jaxdiff as jd
    from jaxdiff import training
    from jaxdiff.cli.names import parse

    devices, shape = jax.device_count(), (8, 8, 1)
    name, _, fields = parse("model", model)
    network = jd.models.build(name, sample_shape=shape, num_classes=None, **fields)
    loss = training.denoising_objective(network, jd.processes.EDM(), jd.parameterizations.edm(0.5))
    params = training.init_params(network, jax.random.key(0), shape)
    optimizer = training.adamw(1e-3)
    update = training.make_update(loss, optimizer, (500,))
    dispatch = training.make_dispatch(update, lambda resident, item: item)
    state = jax.eval_shape(lambda p: training.init_state(p, optimizer, (500,)), params)
    items = {"x": jax.ShapeDtypeStruct((1, devices * batch, *shape), jnp.float32)}
    key = jax.ShapeDtypeStruct((2,), jnp.uint32)
    step = training.parallel("jit").compile(dispatch, state).lower(state, {}, items, key).compile()
    memory, cost = step.memory_analysis(), step.cost_analysis()
    return {
        "devices": devices, "parameters": training.parameter_count(params), "flops": cost["flops"],
        "arguments": memory.argument_size_in_bytes, "temporary": memory.temp_size_in_bytes,
        "collectives": collective_bytes(step.as_text()),
    }


def in_process(count, model, batch):
    flags = f"--xla_force_host_platform_device_count={count}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, __file__, "--one", "--model", model, "--batch", str(batch)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def row(figures, peak, bandwidth):
    n, moved = figures["devices"], sum(figures["collectives"].values())
    ring = 2 * (n - 1) / n * figures["collectives"]["all-reduce"]
    computing, moving = figures["flops"] / peak, ring / bandwidth
    return (
        f"| {n} | {figures['flops'] / 1e6:.1f} | {moved / 1e6:.3f} | {ring / 1e6:.3f} | "
        f"{figures['arguments'] / 1e6:.2f} | {figures['temporary'] / 1e6:.2f} | "
        f"{computing / (computing + moving):.3f} |"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="MLP-S(width=256)")
    parser.add_argument("--batch", type=int, default=1024, help="examples of a device")
    parser.add_argument("--peak", type=float, default=100e12, help="FLOP/s that a device reaches")
    parser.add_argument("--bandwidth", type=float, default=100e9, help="bytes/s of a device's links")
    parser.add_argument("--save", action="store_true", help=f"write the table to {RESULTS.name}")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.model, given.batch)))
        return
    figures = [in_process(count, given.model, given.batch) for count in COUNTS]
    count = figures[0]["parameters"]
    lines = [
        f"{given.model}, {count:,} parameters ({count * 4 / 1e6:.3f} MB in float32), data layout, "
        f"{given.batch} examples a device;",
        f"{given.peak / 1e12:g} TFLOP/s and {given.bandwidth / 1e9:g} GB/s a device are assumed.",
        "",
        "| devices | MFLOP a device | MB of collectives | MB sent by a ring | MB of state and batch | "
        "MB of temporaries | efficiency |",
        "|---|---|---|---|---|---|---|",
        *(row(each, given.peak, given.bandwidth) for each in figures),
    ]
    print("\n".join(lines))
    if given.save:
        RESULTS.write_text("# Scaling, compiled ahead of time\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
