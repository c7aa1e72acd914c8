"""Products of processes: parts of different kinds under one network, each with its own time."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import batch_keys, dataclass, fold_in
from jaxdiff.processes.discrete import DiscreteProcess
from jaxdiff.processes.linear import LinearProcess, OfBase


@dataclass
class Product:
    """A dict of processes over dicts of data with the same names: image and label, nodes and edges.

        x_t[name] = a_name(t[name]) x0[name] + c_name(t[name]) noise[name]    of numbers
        x_t[name] ~ q_name(x_t | x0[name], t[name])                           of tokens

    Every argument that is a dict elsewhere in jaxdiff's functions has these names; a single time is taken for
    every part. `jd.solvers.joint` walks all parts together, `given` fixes some of them. Li et al. (2024),
    arXiv:2410.11439; for systems of SDEs Jo et al. (2022), arXiv:2202.02514; for graphs of tokens, nodes and
    edges having marginals of their own, Vignac et al. (2023), arXiv:2209.14734.
    """

    parts: dict

    def __post_init__(self):
        named = isinstance(self.parts, dict) and all(isinstance(name, str) for name in self.parts)
        if not named or not self.parts:
            raise ValueError(f"Product: expected a dict of processes by name, got {self.parts!r}")
        for name, part in self.parts.items():
            if not (isinstance(part, DiscreteProcess) or hasattr(part, "log_snr")) or part.paired:
                raise ValueError(
                    f"Product: expected processes of tokens, or x_t = a x0 + c noise without a second "
                    f"endpoint, got {type(part).__name__} for {name!r}"
                )
        object.__setattr__(self, "parts", dict(sorted(self.parts.items())))  # as jax has them within jit

    paired = False
    t_min = property(lambda self: {name: part.t_min for name, part in self.parts.items()})
    t_max = property(lambda self: {name: part.t_max for name, part in self.parts.items()})
    normal = property(lambda self: all(getattr(part, "normal", True) for part in self.parts.values()))
    repeats = property(lambda self: any(getattr(part, "repeats", False) for part in self.parts.values()))
    discrete = property(lambda self: [n for n, p in self.parts.items() if isinstance(p, DiscreteProcess)])

    def only(self, *names):
        """The product of the named parts."""
        return Product({name: self.parts[name] for name in self.named("only", dict.fromkeys(names))})

    def coefficients(self, t):
        """`{name: (a, b, c)}` at times `t`, one for all or a dict."""
        if self.discrete:
            raise ValueError(f"Product: expected parts x_t = a x0 + c noise, got tokens for {self.discrete}")
        times = self.times(t)
        return {name: part.coefficients(times[name]) for name, part in self.parts.items()}

    def times(self, t):
        """A time per part."""
        return self.named("times", t) if isinstance(t, dict) else dict.fromkeys(self.parts, t)

    def perturb(self, x0, noise, t, y=None):
        """`{name: x_t}`; see `LinearProcess.perturb`."""
        self.endpoint(y)
        times, x0, noise = self.times(t), self.named("perturb", x0), self.named("perturb", noise)
        return {name: part.perturb(x0[name], noise[name], times[name]) for name, part in self.parts.items()}

    def noise(self, keys, like):
        """`{name: noise}` in the shapes of `like`, for one key or `(batch,)` keys."""
        keys = batch_keys(keys, jax.tree.leaves(like)[0].shape[0], "noise")
        parts = enumerate(self.parts.items())
        return {name: part.noise(fold_in(keys, i), like[name]) for i, (name, part) in parts}

    def prior(self, key, shape, y=None, dtype=None):
        """One example of every part at its `t_max`; `shape` is a dict of shapes, `dtype` of the numbers'."""
        self.endpoint(y)
        shape = self.named("prior", shape)

        def one(i, name, part):
            of_numbers = {} if name in self.discrete else {"dtype": dtype}
            return part.prior(jax.random.fold_in(key, i), tuple(shape[name]), **of_numbers)

        return {name: one(i, name, part) for i, (name, part) in enumerate(self.parts.items())}

    def endpoint(self, y):
        """None: products have no second endpoint of their own."""
        if y is not None:
            raise ValueError("Product has no second endpoint; leave y out")
        return y

    def named(self, where, values):
        """`values`, refused unless it is a dict of the parts' names."""
        if not isinstance(values, dict) or not set(values) <= set(self.parts):
            got = sorted(values) if isinstance(values, dict) else type(values).__name__
            raise ValueError(f"{where}: expected a dict with the names {sorted(self.parts)}, got {got}")
        return values


def given(denoise, process, known, times=None):
    """The clean estimate of the other parts, some parts being known.

    Args:
      denoise: `(x, t) -> clean estimates`, dicts of the product's names.
      process: the `Product`.
      known: `{name: (batch, ...)}`: clean data to condition on.
      times: `{name: t}`: noise levels at which the network sees known parts, 0 by default; above it the
        known part stands for any value at that level (coarse control: pass it perturbed). At `t_max`, with
        noise for the part, what is sampled is the marginal of the others.

    Returns:
      `denoise(x, t)` over the remaining parts, for `process.only(...)` of them.
    """
    known = process.named("given", known)
    at = {name: (times or {}).get(name, 0.0) for name in known}
    missing = [name for name in process.parts if name not in known]
    if not missing:
        raise ValueError("given: expected a part that is left to sample, got all of them as known")

    def conditioned(x, t):
        batch = jax.tree.leaves(x)[0].shape[:1]

        def like(time):
            return jnp.broadcast_to(time, batch) if jnp.ndim(time) == 0 else time

        t = process.times(t) if isinstance(t, dict) else dict.fromkeys(missing, t)
        clean = denoise(
            {**x, **known}, {**{n: like(t[n]) for n in missing}, **{n: like(at[n]) for n in known}}
        )
        return {name: clean[name] for name in missing}

    return conditioned


@dataclass
class Symmetric(OfBase):
    """A process over symmetric matrices without diagonal, such as adjacency: its noise is of that kind.

    Entries (i, j) and (j, i) of the last two axes share one standard normal draw. Jo et al. (2022),
    arXiv:2202.02514, section 3.

    Args:
      base: the process whose coefficients and transition are used.
      mask: `(..., n)` of 0 and 1 that broadcasts to the matrices' rows: nodes that exist; None for all.
    """

    base: LinearProcess
    mask: object = None

    normal = property(lambda self: self.base.normal)
    repeats = True

    def log_noise(self, noise):
        raise ValueError(
            "Symmetric: expected no density over all entries, for half of them repeat the others; take that "
            "of the entries above the diagonal, as a vector, under the base process"
        )

    def prior(self, key, shape, y=None, dtype=None):
        """One example of the prior, which cannot tell its own mask among those of a batch."""
        nodes = np.shape(self.mask)
        if len(nodes) >= len(shape) and nodes[0] != 1:
            raise ValueError(
                f"Symmetric: expected one mask for all samples drawn from keys, got shape {nodes}; pass the "
                "start as x="
            )
        return super().prior(key, shape, y, dtype)

    def noise(self, keys, like):
        noise = jax.tree.map(lambda z: jnp.triu(z, 1), self.base.noise(keys, like))
        noise = jax.tree.map(lambda z: z + jnp.swapaxes(z, -1, -2), noise)
        if self.mask is None:
            return noise

        def masked(z):
            nodes = jnp.asarray(self.mask, z.dtype)
            nodes = nodes.reshape((1,) * (z.ndim - 1 - nodes.ndim) + nodes.shape)
            return z * nodes[..., :, None] * nodes[..., None, :]

        return jax.tree.map(masked, noise)
