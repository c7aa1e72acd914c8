"""Default settings by data set."""

IMAGES = {
    "model": "UNet-XS",
    "process": "EDM",
    "parameterization": "edm",
    "times": "log_normal(mean=-0.8, std=1.2)",
    "steps": 2000,
    "batch_size": 64,
    "learning_rate": 2e-3,
    "warmup": 50,
    "ema_half_lives": (150.0,),
    "label_drop": 0.1,
    "conditional": True,
    "solver": "dpmpp_multistep(2)",
    "grid": "karras",
    "sample_steps": 10,
    "samples": 600,
}

VECTORS = {
    "model": "MLP-S",
    "process": "RectifiedFlow",
    "parameterization": "velocity",
    "times": "stratified",
    "steps": 4000,
    "batch_size": 256,
    "learning_rate": 2e-3,
    "warmup": 50,
    "ema_half_lives": (200.0,),
    "label_drop": 0.0,
    "conditional": False,
    "solver": "heun",
    "grid": "uniform",
    "sample_steps": 25,
    "samples": 5000,
}

# measured on the data set itself, on a validation part of its training split
BY_DATA = {
    "digits": IMAGES,
}


def defaults_for(name, shape):
    """Settings for a data set: its own, or those of images or vectors by the shape of an example."""
    return BY_DATA.get(name) or (VECTORS if len(shape) == 1 else IMAGES)
