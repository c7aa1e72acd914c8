"""Bytes that a train step moves, and memory per device, on up to 256 devices that need not be there.

Each count of devices and each layout (every device holds the state, or a part of it: fsdp) is compiled ahead
of time in a process of its own, from the update that `fit` runs:

    python benchmarks/scaling.py [--model "DiT-S/2(depth=4)"] [--shape 32 32 4] [--batch 32] [--save]

The projected efficiency is that of rings which nothing hides, a lower bound, at the stated peak and
interconnect. A table takes some minutes.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys

COUNTS, LAYOUTS = (1, 8, 64, 256), ("data", "fsdp")
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


def ring_bytes(collectives, devices):
    """Bytes that each device sends, by the result's size, when every collective goes round a ring."""
    turns = devices - 1
    share = {"all-reduce": 2 * turns / devices, "reduce-scatter": turns, "collective-permute": 1}
    return sum(size * share.get(kind, turns / devices) for kind, size in collectives.items())


def measure(model, shape, batch, layout):
    """Figures of one step on all devices of this process; `batch` is that of a device."""
    import jax
    import jax.numpy as jnp

    import jaxdiff as jd
    from jaxdiff import training
    from jaxdiff.cli.names import parse

    devices = jax.device_count()
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
    mesh = training.parallel("jit", mesh={layout: devices})
    step = mesh.compile(dispatch, state).lower(state, {}, items, key).compile()
    memory, cost = step.memory_analysis(), step.cost_analysis()
    return {
        "devices": devices, "layout": layout, "parameters": training.parameter_count(params),
        "flops": cost["flops"],
        "arguments": memory.argument_size_in_bytes, "temporary": memory.temp_size_in_bytes,
        "collectives": collective_bytes(step.as_text()),
    }


def in_process(count, layout, given):
    flags = f"--xla_force_host_platform_device_count={count}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [
        sys.executable, __file__, "--one", layout, "--model", given.model, "--batch", str(given.batch),
        "--shape", *map(str, given.shape),
    ]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def row(figures, peak, bandwidth):
    n, sent = figures["devices"], ring_bytes(figures["collectives"], figures["devices"])
    computing, moving = figures["flops"] / peak, sent / bandwidth
    kinds = ", ".join(f"{kind} {size / 1e6:.1f}" for kind, size in figures["collectives"].items() if size)
    return (
        f"| {figures['layout']} | {n} | {figures['flops'] / 1e9:.2f} | {kinds or '-'} | {sent / 1e6:.1f} | "
        f"{figures['arguments'] / 1e6:.1f} | {figures['temporary'] / 1e6:.1f} | "
        f"{computing / (computing + moving):.3f} |"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="DiT-S/2(width=512, heads=8, depth=4)")
    parser.add_argument("--shape", type=int, nargs="+", default=(32, 32, 4), help="of an example")
    parser.add_argument("--batch", type=int, default=32, help="examples of a device")
    parser.add_argument("--peak", type=float, default=100e12, help="FLOP/s that a device reaches")
    parser.add_argument("--bandwidth", type=float, default=100e9, help="bytes/s of a device's links")
    parser.add_argument("--save", action="store_true", help=f"write the table to {RESULTS.name}")
    parser.add_argument("--one", choices=LAYOUTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.model, tuple(given.shape), given.batch, given.one)))
        return
    figures = [
        in_process(count, layout, given) for layout in LAYOUTS for count in COUNTS
        if count > 1 or layout == LAYOUTS[0]
    ]
    count = figures[0]["parameters"]
    lines = [
        f"{given.model}, {count:,} parameters ({count * 4 / 1e6:.1f} MB in float32), {given.batch} examples "
        f"of shape {tuple(given.shape)} a device;",
        f"{given.peak / 1e12:g} TFLOP/s and {given.bandwidth / 1e9:g} GB/s a device are assumed.",
        "",
        "| layout | devices | GFLOP a device | MB of collectives' results | MB sent by rings | MB of state "
        "and batch | MB of temporaries | efficiency |",
        "|---|---|---|---|---|---|---|---|",
        *(row(each, given.peak, given.bandwidth) for each in figures),
    ]
    print("\n".join(lines))
    if given.save:
        RESULTS.write_text("# Scaling, compiled ahead of time\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
