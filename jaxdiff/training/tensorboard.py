"""A run's numbers as TensorBoard event files, without tensorflow."""

import importlib.util
import os


def check_installed():
    """Raises ValueError where the package tensorboardX is missing."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise ValueError(
            "fit: expected the package tensorboardX for TensorBoard, which is not installed; "
            "pip install 'jaxdiff[tensorboard]', or train without --tensorboard"
        )


class EventFiles:
    """Writes each number of a log line as a scalar into RUN/tensorboard.

    Args:
      run: directory.
      start: step that the run begins at: TensorBoard leaves out what an interrupted run wrote beyond it.
    """

    def __init__(self, run, start):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(os.path.join(run, "tensorboard"), purge_step=start + 1, flush_secs=10)

    def write(self, entry):
        """Takes an entry of the log; events other than log lines are left out."""
        if "event" not in entry:
            for name, value in _scalars(entry):
                self._writer.add_scalar(name, value, entry["step"])

    def close(self):
        """Writes what is left."""
        self._writer.close()


def _scalars(entry):
    for name, value in entry.items():
        if name == "loss_by_log_snr":
            for number, loss in enumerate(value):
                if loss is not None:
                    yield f"loss_by_log_snr/{number}", loss
        elif isinstance(value, (int, float)) and name != "step":
            yield name, value
        elif isinstance(value, dict):
            yield from ((f"{name}/{part}", number) for part, number in value.items())
