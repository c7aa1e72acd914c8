"""Named things on the command line: `karras`, or `karras(rho=5)` with arguments."""

import ast
import inspect

from jaxdiff import grids, models, parameterizations, processes, solvers, times, weightings
from jaxdiff.core import unknown_name
from jaxdiff.data import Affine, Crop, EDMAugment, Elastic, flip
from jaxdiff.data.options import check_options


def _processes():
    """Those between data and noise: a run has no second endpoints."""
    base = processes.LinearProcess
    classes = ((name, getattr(processes, name)) for name in processes.__all__)
    fit = ((name, cls) for name, cls in classes if isinstance(cls, type) and issubclass(cls, base))
    return tuple(name for name, cls in fit if cls is not base and not cls.paired)


def _solvers():
    """Those that need no argument: others (classes, parts of solvers, fits to a network) are for scripts."""

    def complete(name):
        function = getattr(solvers, name)
        if not callable(function):  # a module of solvers
            return False
        parameters = inspect.signature(function).parameters.values()
        return all(p.default is not p.empty or p.kind == p.VAR_KEYWORD for p in parameters)

    return tuple(name for name in solvers.__all__ if name.islower() and complete(name))


AUGMENTATIONS = {"affine": Affine, "crop": Crop, "edm": EDMAugment, "elastic": Elastic, "flip": flip}

FAMILIES = {
    "process": (processes, _processes()),
    "parameterization": (parameterizations, ("noise", "data", "v", "velocity", "score", "edm")),
    "times": (times, ("uniform", "stratified", "log_snr", "log_normal", "logit_normal", "mode")),
    "weighting": (weightings, ("edm", "min_snr", "p2", "sigmoid", "likelihood")),
    "solver": (solvers, _solvers()),
    "grid": (grids, ("uniform", "quadratic", "cosine", "shifted", "log_snr", "karras")),
}


def known(family):
    """The names of a family."""
    if family == "model":
        return models.names()
    if family == "augment":
        return tuple(AUGMENTATIONS)
    return FAMILIES[family][1]


def parse(family, text):
    """A name as written, with its arguments.

    Case, `-` and `_` do not matter in the name.

    Args:
      family: a key of `FAMILIES`, `model` or `augment`.
      text: `name` or `name(value, key=value, ...)` with Python literals.

    Returns:
      `(name, positional, keywords)`, the name as `known(family)` spells it.

    Raises:
      ValueError: for an unknown name, with the near ones, or arguments that are no literals.
    """
    name, bracket, rest = str(text).strip().partition("(")
    spelled = {_plain(item): item for item in known(family)}
    if _plain(name) not in spelled:
        raise ValueError(f"{family}: {unknown_name(family, name, known(family))}")
    try:
        call = ast.parse(f"f{bracket}{rest}" if bracket else "f()", mode="eval").body
        positional = [ast.literal_eval(node) for node in call.args]
        keywords = {node.arg: ast.literal_eval(node.value) for node in call.keywords}
    except (SyntaxError, ValueError, AttributeError):
        raise ValueError(
            f"{family}: expected NAME or NAME(key=value, ...), got {text!r}; quote it in "
            "the shell"
        ) from None
    return spelled[_plain(name)], positional, keywords


def lookup(family, text, *first):
    """What `text` names in `family`, called with `first` and its own arguments.

    A solver may also be the file of a tuned one, FILE.json.

    Raises:
      ValueError: as of `parse`, or for arguments that the thing does not take.
    """
    if family == "solver" and str(text).endswith(".json"):
        return solvers.load(text)
    name, positional, keywords = parse(family, text)
    function = AUGMENTATIONS[name] if family == "augment" else getattr(FAMILIES[family][0], name)
    try:
        given = inspect.signature(function).bind(*first, *positional, **keywords).arguments
        check_options(f"{family} {name}", function, given, several=family == "solver")
        return function(*first, *positional, **keywords)
    except TypeError as error:
        raise ValueError(f"{family}: expected other arguments than in {text!r}: {error}") from None


def _plain(name):
    return name.strip().lower().replace("-", "").replace("_", "")
