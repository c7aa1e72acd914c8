"""The pages name what there is, and count what it costs."""

import inspect
import pathlib
import re

import jax
from jax.extend.core import jaxprs_in_params

import jaxdiff as jd
from jaxdiff.cli.names import known

DOCS = pathlib.Path(__file__).parent.parent / "docs"


def names(page):
    return set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", (DOCS / page).read_text()))))


def test_every_solver_and_every_process_is_on_its_page():
    assert not set(jd.solvers.__all__) - names("solvers.md")
    assert not set(jd.processes.__all__) - names("processes.md") - {"LinearProcess"}


def rows(page):
    """The cells of every row of the page's tables."""
    lines = (DOCS / page).read_text().splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]


def evaluations(solver, n, process):
    """How often a solver of n steps on a grid that ends at data asks the network, by tracing it."""

    @jax.jit
    def network(x, t):
        return x

    def asked(jaxpr):
        count = 0
        for eqn in jaxpr.eqns:
            inside = sum(asked(inner) for inner in jaxprs_in_params(eqn.params))
            count += eqn.params.get("length", 1) * (eqn.params.get("name") == "network" or inside)
        return count

    keys, grid = jax.random.split(jax.random.key(0), 1), jd.grids.log_snr(process, n)
    return asked(jax.make_jaxpr(lambda: jd.sample(keys, network, process, solver, grid, shape=(2,)))().jaxpr)


def test_solvers_take_the_evaluations_of_their_table():
    seen, process = set(), jd.processes.VP()
    for first, _, cell, *_ in (row for row in rows("solvers.md") if len(row) == 5):
        formula = cell.removesuffix(" on default grids")
        if set(re.findall("[^ 0-9()+-]+", formula)) - {"n", "order", "correctors"} or not formula:
            continue
        formula = re.sub(r"(?<=[\w)]) (?=[\w(])", "*", formula)
        for name in set(re.findall(r"\w+", first)) & set(known("solver")):
            for more in [{}, {"order": 2}, {"order": 3}, {"correctors": 0}, {"correctors": 2}]:
                if all(option in formula for option in more):
                    solver = getattr(jd.solvers, name)
                    settings = {k: p.default for k, p in inspect.signature(solver).parameters.items()} | more
                    got = evaluations(solver(**more), 5, process)
                    assert got == eval(formula, {"n": 5, **settings}), (name, more)
                    seen.add(name)
    assert len(seen) > 25


def test_solvers_that_are_said_to_take_a_noise_level_do():
    text = (DOCS / "solvers.md").read_text()
    said = re.search(r"A noise level `tau` is taken by (.*?), by", text, re.DOTALL)[1]
    parameters = {name: inspect.signature(getattr(jd.solvers, name)).parameters for name in known("solver")}
    assert set(re.findall(r"`(\w+)`", said)) == {name for name, taken in parameters.items() if "tau" in taken}
