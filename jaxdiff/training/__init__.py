"""Training: state, averages, one update for every kind of parallelism, checkpoints, the loop."""

from jaxdiff.training import distributed, ema
from jaxdiff.training.checkpoints import Checkpoints, read_record, restore, to_state
from jaxdiff.training.loop import fit
from jaxdiff.training.memory import keep_freed_memory
from jaxdiff.training.objectives import denoising_objective
from jaxdiff.training.optimizers import adamw, learning_rates
from jaxdiff.training.parallel import make_dispatch, over_devices, parallel
from jaxdiff.training.pictures import save_picture
from jaxdiff.training.report import report_page
from jaxdiff.training.runs import CannotSave, checkpoint_directory, claim, read_config, read_log
from jaxdiff.training.signals import Interrupted
from jaxdiff.training.snapshots import synthesize
from jaxdiff.training.state import TrainState, fingerprint, init_params, init_state, parameter_count
from jaxdiff.training.update import make_update

__all__ = [
    "CannotSave",
    "Checkpoints",
    "Interrupted",
    "TrainState",
    "adamw",
    "checkpoint_directory",
    "claim",
    "denoising_objective",
    "distributed",
    "ema",
    "fingerprint",
    "fit",
    "init_params",
    "init_state",
    "keep_freed_memory",
    "learning_rates",
    "make_dispatch",
    "make_update",
    "over_devices",
    "parallel",
    "parameter_count",
    "read_config",
    "read_log",
    "read_record",
    "report_page",
    "restore",
    "save_picture",
    "synthesize",
    "to_state",
]
