"""Default settings by data set."""

from jaxdiff.data import TOYS

COMMON = {
    "checkpoint_every": 500,
    "weighting": "none",
    "augment": "none",
    "augment_told": True,
    "augment_until": 1.0,
    "augment_above": 0.0,
    "warmup": 50,
    "decay": "cosine",
    "weight_decay": 0.0,
    "beta1": 0.9,
    "beta2": 0.99,
    "nesterov": False,
    "clip": 1.0,
    "label_drop": 0.0,
    "threads": 0,
}

IMAGES = COMMON | {
    "model": "UNet-XS(dropout=0.1)",
    "process": "EDM",
    "parameterization": "edm",
    "times": "log_normal(mean=-1.2, std=1.2)",
    "conditional": True,
    "label_drop": 0.1,
    "steps": 4000,
    "batch_size": 32,
    "learning_rate": 2e-3,
    "ema": ("200",),
    "picture_every": 1000,
    "solver": "dpmpp_multistep(2)",
    "grid": "karras",
    "sample_steps": 10,
    "samples": 600,
}

VECTORS = COMMON | {
    "model": "MLP-S(width=64)",
    "process": "RectifiedFlow",
    "parameterization": "velocity",
    "times": "stratified",
    "conditional": False,
    "steps": 3200,
    "batch_size": 512,
    "learning_rate": 5e-3,
    "ema": ("400",),
    "picture_every": 0,
    "checkpoint_every": 2000,  # a step is a few milliseconds, a checkpoint a hundred
    "solver": "heun",
    "grid": "uniform",
    "sample_steps": 25,
    "samples": 20_000,  # four times as many as a toy holds out
}

BY_DATA = {
    # chosen on 300 images held out of the training split, by the error of denoising them, which tells
    # settings apart where the scores of samples do not
    "digits": IMAGES | {
        # sines of four, two and one grey levels' period, in the network's input under little noise
        "model": "UNet-XS(attention_resolutions=(), dropout=0.15, fourier_features=(1.504, 3.007, 6.015))",
        "process": "EDM(t_min=0.02, t_max=30)",  # a quarter of a grey level
        "label_drop": 0.0,
        "augment": "elastic(bend=0.3, rotate=0.08, shear=0.1, probability=0.7)",
        "augment_until": 0.9,
        "augment_above": 0.1,
        "learning_rate": 4e-3,
        "decay": "linear",
        "beta1": 0.95,
        "nesterov": True,
        "steps": 6000,
        "checkpoint_every": 1000,  # half a minute
        "picture_every": 2000,
        "grid": "karras(rho=9)",
        "threads": 1,
    },
} | {name: VECTORS | {"threads": 1} for name in TOYS}


def defaults_for(name, shape):
    """Settings for a data set: its own, or those of images or vectors by the shape of an example."""
    return BY_DATA.get(name) or (VECTORS if len(shape) == 1 else IMAGES)


def threads_for(name):
    """XLA's threads for a data set, which are settled before it is loaded."""
    return BY_DATA.get(name, COMMON)["threads"]
