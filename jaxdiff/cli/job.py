"""What a configuration describes: network, process, loss, optimizer, sampler."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from jaxdiff import training
from jaxdiff.cli.names import lookup, parse
from jaxdiff.core import check_seed, check_share, fold_in

CHUNK = {True: 100, False: 1000}  # images and vectors of one call; of each accelerator


class Job(NamedTuple):
    """The parts of a run that its configuration names."""

    model: object
    process: object
    parameterization: object
    shape: tuple
    num_classes: int | None
    vector_size: int | None


def build_job(config):
    """The network, the process and the meaning of the output.

    Raises:
      ValueError: for unknown names, or arguments that they do not take.
    """
    record = config["data_record"]
    shape = tuple(record["shape"])
    num_classes = record["num_classes"] if config["conditional"] else None
    told = config["augment"] != "none" and config["augment_told"]
    vector_size = lookup("augment", config["augment"]).vector_size if told else None
    name, positional, overrides = parse("model", config["model"])
    if positional:
        raise ValueError(f"build_job: expected model fields as key=value, got {config['model']!r}")
    if own := sorted(overrides.keys() & {"name", "sample_shape", "num_classes", "vector_size"}):
        raise ValueError(
            f"build_job: expected a model without {own[0]}, which goes by the data, the augmentation and the "
            f"model's name, got {config['model']!r}"
        )
    model = jd.models.build(
        name, sample_shape=shape, num_classes=num_classes,
        **({"vector_size": vector_size} if told else {}), **overrides,
    )
    return Job(
        model,
        lookup("process", config["process"]),
        lookup("parameterization", config["parameterization"]),
        shape,
        num_classes,
        vector_size,
    )


def arrays(job, dataset):
    """What the run trains on, with labels where it is told them."""
    return dataset.examples(label=job.num_classes is not None)


def objective(job, config):
    """`loss(params, batch, keys, strata, step)` of the run."""
    if config["label_drop"] and job.num_classes is None:
        raise ValueError(
            "objective: expected no label_drop for a network that is not told labels, got "
            f"{config['label_drop']}; add --conditional True where the data has labels"
        )
    return training.denoising_objective(
        job.model, job.process, job.parameterization, weighting=weighting(config),
        times=lookup("times", config["times"]), label_drop=config["label_drop"],
        null_label=job.num_classes, augment=_augmentation(job, config), augment_until=_until(config),
        augment_above=config.get("augment_above") or None,
    )


def weighting(config):
    """The loss's weighting, or None; `likelihood` is the bound, whatever the run's times."""
    if config["weighting"] == "none":
        return None
    if parse("weighting", config["weighting"]) == ("likelihood", [], {}):
        return jd.weightings.likelihood(lookup("times", config["times"]))
    return lookup("weighting", config["weighting"])


def optimizer(config):
    """AdamW with the run's schedule."""
    rates = training.learning_rates(
        config["learning_rate"], config["steps"], config["warmup"], config["decay"]
    )
    return training.adamw(
        rates, beta1=config["beta1"], beta2=config["beta2"], nesterov=config["nesterov"],
        weight_decay=config["weight_decay"], clip=config["clip"],
    )


def make_sampler(job, config):
    """`draw(params, n, seed, labels=None) -> (n, *shape)` numpy samples in data units.

    A sample depends on the seed, its number and its label alone. Chunks of one size are compiled once and cut
    over the devices of all processes, each of which has to draw.
    """
    solver, scale = lookup("solver", config["solver"]), config["guidance_scale"]
    if not np.isfinite(scale):
        raise ValueError(f"make_sampler: expected a finite guidance_scale, got {scale}")
    if scale != 1 and not config["label_drop"]:
        raise ValueError(
            f"make_sampler: expected guidance_scale 1 for a run without label_drop, got {scale}; "
            "train with labels and --label-drop 0.1"
        )
    grid = None  # a tuned solver has its own
    if not isinstance(solver, jd.solvers.Tuned):
        grid = lookup("grid", config["grid"], job.process, config["sample_steps"])
    record = data_of(config)
    _try_sampler(job, solver, grid)

    def chunk(shared, number, labels):
        params, seed = shared
        keys = fold_in(jax.random.fold_in(jax.random.key(seed), 1), number)

        def denoiser(condition):
            def net(x, c_noise):
                return job.model.apply({"params": params}, x, c_noise, condition)

            return jd.denoiser(net, job.process, job.parameterization)

        size = len(number)
        cond = denoiser(_condition(job, labels, size))
        if scale != 1:
            null = jnp.full(size, job.num_classes)
            uncond = denoiser(_condition(job, null, size))
            cond = jd.guidance.classifier_free(cond, uncond, scale)
        return jd.sample(keys, cond, job.process, solver, grid, shape=job.shape)

    compiled = training.over_devices(chunk)

    def draw(params, n, seed, labels=None):
        check_seed("draw", seed)
        most, devices = CHUNK[len(job.shape) == 3], jax.device_count()
        if jax.default_backend() != "cpu":
            most = min(n, most * devices)
        size = -(-most // devices) * devices
        number = np.arange(-(-n // size) * size, dtype=np.int32)
        if job.num_classes is not None:
            labels = np.resize(np.asarray(labels, np.int32), len(number))
        run = compiled((params, np.uint32(seed)))
        parts = [
            run(number[i : i + size], labels if labels is None else labels[i : i + size])
            for i in range(0, len(number), size)
        ]
        return record.from_model(np.concatenate(parts)[:n])

    return draw


def _try_sampler(job, solver, grid):
    """Says before a run is trained, or a network traced, what could not be sampled."""
    denoise = jd.denoiser(lambda x, c_noise: x, job.process, job.parameterization)
    jax.eval_shape(
        lambda keys: jd.sample(keys, denoise, job.process, solver, grid, shape=job.shape),
        jax.random.split(jax.random.key(0), 1),
    )


def check_labels(labels, n, num_classes):
    """`n` labels: the given ones repeated, or every class in turn; None without classes.

    Raises:
      ValueError: for labels out of range, or any for a network without labels.
    """
    if num_classes is None:
        if labels is not None:
            raise ValueError("check_labels: expected no labels for a run without classes, got some")
        return None
    labels = np.arange(num_classes) if labels is None else np.asarray(labels)
    if labels.size == 0 or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"check_labels: expected labels in [0, {num_classes}), got {labels.tolist()}; choose classes "
            "of the run's data"
        )
    return np.resize(labels, n).astype(np.int32)


def data_of(config):
    """The data set's scale and range as the run recorded them, without its examples."""
    record = config["data_record"]
    empty = {"x": np.zeros((0, *record["shape"]), np.float32)}
    return jd.data.Dataset(
        name=config["data"], train=empty, held_out=empty, num_classes=record["num_classes"],
        value_range=record["value_range"] and tuple(record["value_range"]),
        levels=record["levels"], shift=record["shift"], scale=record["scale"],
    )


def _augmentation(job, config):
    """The augmentation, within the data's range; the network is told of it or not."""
    if config["augment"] == "none":
        return None
    augment = lookup("augment", config["augment"])
    data = data_of(config)
    if isinstance(augment, jd.data.Elastic) and data.levels != augment.block**2 + 1:
        raise ValueError(
            f"augment: expected images of {augment.block**2 + 1} grey levels (block^2 + 1) for elastic, got "
            f"{data.levels or 'others'}; use affine"
        )
    if data.value_range is not None:
        low, high = (float(data.to_model(value)) for value in data.value_range)
        if hasattr(augment, "limits"):
            augment = augment.replace(limits=augment.limits or (low, high))
        if getattr(augment, "background", None) == "lowest":
            augment = augment.replace(background=low)
    if isinstance(getattr(augment, "background", None), str):
        raise ValueError(f"augment: expected a number or 'lowest' as background, got {augment.background!r}")
    one = jnp.zeros((1, *job.shape))
    jax.eval_shape(augment, jax.random.split(jax.random.key(0), 1), one)  # says now what would not fit
    if config["augment_told"]:
        return augment
    return lambda keys, x: (augment(keys, x)[0], None)


def _until(config):
    share = config["augment_until"]
    check_share("objective", augment_until=share)
    return None if share == 1 else round(share * config["steps"])


def _condition(job, labels, size):
    """Labels, and zeros for the parameters of augmentation: a sample is an image as it is."""
    condition = {}
    if job.num_classes is not None:
        condition["label"] = labels
    if job.vector_size is not None:
        condition["vector"] = jnp.zeros((size, job.vector_size))
    return condition or None
