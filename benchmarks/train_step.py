"""What a train step costs: against diffusers on torch, against a hand-written step, to compile.

One run, pinned to one core, the sides interleaved; a ratio is the median over repetitions of the
two sides' neighbouring measurements, in CPU-seconds, so that a busy machine moves both alike:

    python benchmarks/train_step.py [--core 1] [--repeats 15] [--save]

Needs torch and diffusers (the bench extra) for the first table.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

RESULTS = pathlib.Path(__file__).parent / "results" / "train_step.md"
CLASSES = 10
SIZES = {
    "8 x 8 x 1, batch 64": {
        "shape": (8, 8, 1), "batch": 64, "channels": (32, 64), "attention_resolutions": (4,),
    },
    "32 x 32 x 3, batch 8": {
        "shape": (32, 32, 3), "batch": 8, "channels": (64, 128), "attention_resolutions": (16,),
    },
}


def arrays(shape, batch):
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, *shape)).astype(np.float32)
    return x, rng.uniform(size=batch).astype(np.float32), np.arange(batch) % CLASSES


def jax_side(shape, batch, channels, attention_resolutions):
    """`(step, parameters, FLOPs)` of the U-Net on jax; `step()` returns when it is done.

    Arrays are packed as `fit` packs them; AdamW on torch is its fused one.
    """
    import jax
    import optax

    from jaxdiff import models
    from jaxdiff.training.packed import form_of, pack, pack_like, unpack

    model = models.UNet(channels, 1, attention_resolutions, num_classes=CLASSES)
    x, c_noise, label = arrays(shape, batch)
    params = jax.jit(model.init)(jax.random.key(0), x, c_noise)["params"]
    params = pack(params, form) if (form := form_of(params)) else params
    optimizer = optax.adamw(1e-3)
    carry = [params, optimizer.init(params)]

    def update(params, state):
        def loss(params):
            return ((model.apply({"params": params}, x, c_noise, label) - x) ** 2).mean()

        value, grads = jax.value_and_grad(loss)(unpack(params))
        updates, state = optimizer.update(pack_like(grads, params), state, params)
        return optax.apply_updates(params, updates), state, value

    compiled = jax.jit(update, donate_argnums=(0, 1)).lower(*carry).compile()
    size = sum(leaf.size for leaf in jax.tree.leaves(params))

    def step():
        *carry[:], value = compiled(*carry)
        value.block_until_ready()

    return step, size, compiled.cost_analysis()["flops"]


def torch_side(shape, batch, channels, attention_resolutions):
    """The same network, loss and optimizer: diffusers' UNet2DModel on torch."""
    import torch
    from diffusers import UNet2DModel
    from torch.utils.flop_counter import FlopCounterMode

    torch.set_num_threads(1)
    sides = [shape[0] >> level for level in range(len(channels))]
    kinds = ["Attn" if side in attention_resolutions else "" for side in sides]
    model = UNet2DModel(
        sample_size=shape[0], in_channels=shape[2], out_channels=shape[2],
        block_out_channels=channels, layers_per_block=1, attention_head_dim=32,
        down_block_types=[f"{kind}DownBlock2D" for kind in kinds],
        up_block_types=[f"{kind}UpBlock2D" for kind in reversed(kinds)],
        resnet_time_scale_shift="scale_shift", norm_num_groups=8, num_class_embeds=CLASSES + 1,
    )
    x, c_noise, label = (torch.from_numpy(value) for value in arrays(shape, batch))
    x = x.permute(0, 3, 1, 2).contiguous()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)

    def step():
        loss = ((model(x, c_noise, class_labels=label).sample - x) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with FlopCounterMode(display=False) as counter:
        step()
    return step, sum(p.numel() for p in model.parameters()), counter.get_total_flops()


def digits_job(ema):
    """The digits job's `(update, state, batch, model, process, parameterization, optimizer)`."""
    import jax
    import optax

    import jaxdiff as jd

    model = jd.models.build("UNet-XS", sample_shape=(8, 8, 1), num_classes=CLASSES)
    process, parameterization = jd.processes.EDM(), jd.parameterizations.edm(sigma_data=0.5)
    x, c_noise, label = arrays((8, 8, 1), 64)
    params = jax.jit(model.init)(jax.random.key(0), x, c_noise)["params"]
    optimizer = optax.adamw(1e-3)
    loss = jd.training.denoising_objective(model, process, parameterization)
    update = jd.training.make_update(loss, optimizer, ema)
    state = jd.training.init_state(params, optimizer, ema)
    return update, state, {"x": x, "label": label}, model, optimizer


def ours(ema):
    """`step()` of jaxdiff's own update, the state packed as `fit` does it."""
    import jax

    from jaxdiff.training.packed import form_of, pack

    update, state, batch, *_ = digits_job(ema)
    state = pack(state, form_of(state.params))
    carry, key = [state], jax.random.key(1)
    compiled = jax.jit(update, donate_argnums=0).lower(state, batch, key).compile()
    batch = jax.device_put(batch)

    def step():
        carry[0], metrics = compiled(carry[0], batch, key)
        metrics["loss"].block_until_ready()

    return step


def by_hand(half_life):
    """`step()` of a minimal step: EDM loss with one key a batch, AdamW, EMA if `half_life`."""
    import jax
    import jax.numpy as jnp
    import optax

    _, state, batch, model, optimizer = digits_job(())
    batch, key = jax.device_put(batch), jax.random.key(1)

    def update(params, average, opt_state, count):
        def loss(params):
            keys = jax.random.split(jax.random.fold_in(key, count))
            sigma = jnp.exp(1.2 * jax.random.normal(keys[0], (64,)) - 1.2)
            noise = jax.random.normal(keys[1], batch["x"].shape)
            s = sigma[:, None, None, None]
            scale = jnp.sqrt(s**2 + 0.25)
            x = (batch["x"] + s * noise) / scale
            out = model.apply({"params": params}, x, jnp.log(sigma) / 4, batch["label"])
            target = (batch["x"] - 0.25 / scale**2 * (scale * x)) / (0.5 * s / scale)
            return ((out - target) ** 2).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        if half_life:
            decay = 0.5 ** (1 / half_life)
            average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)
        return params, average, opt_state, count + 1, value

    average = jax.tree.map(jnp.copy, state.params) if half_life else None
    carry = [state.params, average, state.opt_state, 0]
    jitted = jax.jit(update, donate_argnums=(0, 1, 2))

    def step():
        *carry[:], value = jitted(*carry)
        value.block_until_ready()

    return step


def interleave(first, second, repeats):
    """Median CPU milliseconds of each side, and of the ratio second / first."""
    times = []
    for index in range(repeats + 3):
        pair = []
        for step in (first, second):
            start = time.process_time()
            step()
            pair.append(1e3 * (time.process_time() - start))
        times += [pair] if index >= 3 else []
    ratio = statistics.median(b / a for a, b in times)
    return *(statistics.median(side) for side in zip(*times, strict=True)), ratio


def compile_seconds():
    """Prints the CPU-seconds that the digits job's train step and sampler take to compile."""
    import jax

    import jaxdiff as jd
    from jaxdiff.training.parallel import packed

    update, state, batch, model, _ = digits_job((1000.0,))
    keys, labels = jax.random.split(jax.random.key(2), 64), batch["label"]
    process = jd.processes.EDM()
    grid, solver = jd.grids.karras(process, steps=10), jd.solvers.dpmpp_multistep(order=2)

    def sample(params, keys, labels):
        def net(x, c_noise):
            return model.apply({"params": params}, x, c_noise, labels)

        denoise = jd.denoiser(net, process, jd.parameterizations.edm(sigma_data=0.5))
        return jd.sample(keys, denoise, process, solver, grid, shape=(8, 8, 1))

    layout = packed(jd.training.parallel("jit", jax.devices()[:1]), state.params)  # as `fit` does
    dispatch = jd.training.make_dispatch(update, lambda resident, item: item)
    items = jax.tree.map(lambda a: a[None], batch)
    start = time.process_time()
    step = layout.compile(dispatch, state)
    step.lower(layout.place(state), {}, items, jax.random.key_data(jax.random.key(1))).compile()
    middle = time.process_time()
    jd.training.over_devices(sample)(state.params)(keys, labels)
    print(middle - start, time.process_time() - middle)


def compile_table():
    """Cold and warm, each in a process of its own on one compilation cache."""
    lines = ["| compilation cache | train step | sampler | together |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as cache:
        settings = {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        for name in ("empty", "filled"):
            command = [sys.executable, __file__, "--only-compile"]
            output = subprocess.check_output(command, env=os.environ | settings, text=True)
            step, sampler = (float(word) for word in output.split()[-2:])
            lines.append(f"| {name} | {step:.1f} | {sampler:.1f} | {step + sampler:.1f} |")
    return lines


def report(repeats):
    yield "Train steps (AdamW, float32) on one core; CPU-milliseconds, medians, interleaved."
    yield "The ratio in the last column is of steps per second, jaxdiff over diffusers."
    yield ""
    yield "| U-Net | parameters (torch) | GFLOP (torch) | jaxdiff | diffusers | ratio |"
    yield "|---|---|---|---|---|---|"
    for name, fields in SIZES.items():
        step, size, flops = jax_side(**fields)
        rival, rival_size, rival_flops = torch_side(**fields)
        mine, theirs, ratio = interleave(step, rival, repeats)
        yield (
            f"| {name} | {size:,} ({rival_size:,}) | {flops / 1e9:.2f} ({rival_flops / 1e9:.2f}) "
            f"| {mine:.1f} | {theirs:.1f} | {ratio:.2f} |"
        )
    yield ""
    yield "GFLOP of a whole step: all operations by XLA's count, products alone by torch's."
    yield ""
    yield "| UNet-XS on digits, batch 64 | by hand | jaxdiff.training | time, ours over theirs |"
    yield "|---|---|---|---|"
    for name, half_lives in {"no EMA": (), "one EMA": (1000.0,)}.items():
        theirs, mine, ratio = interleave(by_hand(sum(half_lives)), ours(half_lives), repeats)
        yield f"| {name} | {theirs:.1f} | {mine:.1f} | {ratio:.3f} |"
    yield ""
    yield "Tracing and compiling UNet-XS for digits (one EMA, DPM-Solver++ 2M), CPU-seconds."
    yield ""
    yield from compile_table()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--core", type=int, default=1, help="the one core to run on")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--only-compile", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    os.environ |= {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    if options.only_compile:
        return compile_seconds()
    from jaxdiff.training import keep_freed_memory

    keep_freed_memory()  # as the command line does; it serves both sides
    lines = []
    for line in report(options.repeats):
        print(line, flush=True)
        lines.append(line)
    if options.save:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
