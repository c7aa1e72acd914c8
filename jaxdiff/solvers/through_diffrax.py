"""Every sample of a batch by `diffrax.diffeqsolve` with steps of its own; see `adaptive`."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxdiff.solvers.runge_kutta import slope

ODE_METHODS = {"bosh3": "Bosh3", "tsit5": "Tsit5", "dopri5": "Dopri5", "dopri8": "Dopri8"}
SDE_METHODS = {"shark": "ShARK", "sra1": "SRA1"}


def load():
    """diffrax, imported when it is first needed."""
    try:
        import diffrax
    except ImportError as error:
        raise ImportError("adaptive: needs diffrax; pip install 'jaxdiff[adaptive]'") from error
    return diffrax


def solve_batch(denoise, x, row, draw):
    """Every sample by `diffrax.diffeqsolve` under `vmap`; the network sees the whole batch at once."""
    diffrax, own = load(), row.settings
    if own.stochastic and draw.keys is None:
        raise ValueError(
            "adaptive: expected (batch,) keys with tau > 0, got a Brownian path or recorded noise"
        )
    flat, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], x))
    one, network = _one_of_batch(denoise, x)
    equation = _Equation(own, row.process, one, unravel, flat.dtype)
    first, last = ends = [equation.place(t) for t in (row.start, row.stop)]
    solver = getattr(diffrax, (SDE_METHODS if own.stochastic else ODE_METHODS)[own.method])()
    gains = dict(pcoeff=0.1, icoeff=0.3) if own.stochastic else {}
    # far out in noise nothing happens: steps that grow tenfold there leap over what comes
    control = diffrax.PIDController(own.rtol, own.atol, factormax=2.0, **gains)

    def solve(x, key):
        terms = diffrax.ODETerm(equation.drift)
        if own.stochastic:
            path = diffrax.VirtualBrownianTree(
                *ends, tol=1e-4 * (last - first), shape=jax.ShapeDtypeStruct(flat.shape, flat.dtype), key=key,
                levy_area=diffrax.SpaceTimeLevyArea,
            )  # fmt: skip
            terms = diffrax.MultiTerm(terms, diffrax.ControlTerm(equation.noise, path))
        out = diffrax.diffeqsolve(
            terms, solver, *ends, (last - first) / 100, ravel_pytree(x)[0] / equation.scale(first),
            args=network, stepsize_controller=control, max_steps=own.max_steps, throw=False,
        )  # fmt: skip
        arrived = out.result == diffrax.RESULTS.successful
        return unravel(jnp.where(arrived, out.ys[-1] * equation.scale(last), jnp.nan)), out.stats["num_steps"]

    x, steps = jax.vmap(solve, in_axes=(0, 0 if own.stochastic else None))(x, draw.keys)
    stages, extra = _evaluations(solver, own.stochastic)
    return x, (stages * steps + extra).astype(jnp.int32)


class _Equation:
    """Drift and noise of `z = x / scale` in the coordinate that diffrax steps along, for one flat example."""

    def __init__(self, settings, process, one, unravel, dtype):
        self.settings, self.process, self.coordinate = settings, process, settings.coordinate
        self.one, self.unravel, self.dtype = one, unravel, dtype

    def cast(self, value):
        """In the dtype of x: tables of a process may be wider."""
        return jnp.asarray(value, self.dtype)

    def place(self, t):
        """The coordinate of a time."""
        place = {
            "time": lambda: t, "log_snr": lambda: self.process.log_snr(t),
            "sigma": lambda: jnp.exp(-self.process.log_snr(t)),
        }  # fmt: skip
        return self.cast(place[self.coordinate]())

    def time(self, theta):
        """The time of a coordinate."""
        if self.coordinate == "time":
            return theta
        level = theta if self.coordinate == "log_snr" else -jnp.log(theta)
        return self.cast(self.process.time_of_log_snr(level))

    def levels(self, theta):
        """Signal and noise, shares of a whole: `share**2 + noise**2 = 1`, and the whole."""
        a, _, c = map(self.cast, self.process.coefficients(self.time(theta)))
        whole = jnp.sqrt(a**2 + c**2)
        return a / whole, c / whole, whole

    def scale(self, theta):
        if self.coordinate == "log_snr":
            return self.levels(theta)[2]
        return self.cast(slope(self.process, self.time(theta), self.coordinate)[0])

    def drift(self, theta, z, network):
        t, x = self.time(theta), self.scale(theta) * z
        clean = ravel_pytree(self.one(network, self.unravel(x), t))[0].astype(self.dtype)
        if self.coordinate != "log_snr":
            _, p, q = map(self.cast, slope(self.process, t, self.coordinate))
            return p * x + q * clean
        share = self.levels(theta)[0]
        return share * clean - share**2 * z + self.settings.tau**2 * (share * clean - z)

    def noise(self, theta, z, network):
        import lineax

        level = jnp.sqrt(2.0) * self.settings.tau * self.levels(theta)[1]
        return lineax.DiagonalLinearOperator(jnp.broadcast_to(level, z.shape).astype(z.dtype))


def _evaluations(solver, stochastic):
    """Evaluations per step, and once."""
    if stochastic:
        return len(solver.tableau.b_sol), 0
    stages = solver.tableau.num_stages
    return (stages - 1, 1) if solver.tableau.fsal else (stages, 0)


def _one_of_batch(denoise, x):
    """`(network, x, t) -> clean estimate` of one example; `vmap` over the batch makes it `denoise` again.

    What `denoise` closes over (parameters, conditions of every example) may have a batch axis of its own,
    so that it cannot be called on one example.
    """
    import equinox

    batch, dtype = jax.tree.leaves(x)[0].shape[0], jax.tree.leaves(x)[0].dtype
    closed = equinox.filter_closure_convert(denoise, x, jnp.zeros(batch, dtype))
    network, fixed = equinox.partition(closed, equinox.is_array)

    def repeated(value):
        return jnp.broadcast_to(value[None], (batch, *jnp.shape(value)))

    @jax.custom_batching.custom_vmap
    def one(network, x, t):  # looked at for its shapes alone
        clean = equinox.combine(network, fixed)(jax.tree.map(repeated, x), repeated(t))
        return jax.tree.map(lambda leaf: leaf[0], clean)

    @one.def_vmap
    def whole(size, batched, network, x, t):
        x, t = jax.tree.map(
            lambda leaf, is_batch: leaf if is_batch else repeated(leaf), (x, t), tuple(batched[1:])
        )
        clean = equinox.combine(network, fixed)(x, t)
        return clean, jax.tree.map(lambda _: True, clean)

    return one, network
