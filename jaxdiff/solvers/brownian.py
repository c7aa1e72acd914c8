"""One Brownian path per sample, the same at every step size: for refinement and replay."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import batch_keys, check_positive, dataclass, fold_in, is_concrete, static_field
from jaxdiff.solvers.tableau import Tableau

SPREAD = 4.0  # log-SNR at which three quarters of the tree lie below; its leaves are finest around 0


@dataclass
class Brownian:
    """Brownian paths, made by `brownian`; stands in for the keys of `jd.sample`.

    Attributes:
      keys: `(batch,)` keys, one per sample.
      process: forward process.
      tau: noise level of the reverse SDE.
      depth: number of times that the axis of log-SNR is halved.
    """

    keys: jax.Array
    process: object
    tau: float
    depth: int = static_field()

    def check(self, process, rows):
        """Raises ValueError for a process or a plan whose noise is not an increment of the path."""
        if getattr(process, "repeats", False):
            raise ValueError(
                f"sample: expected (batch,) keys for {type(process).__name__}, got a Brownian path, whose "
                "entries are drawn one by one"
            )
        if not hasattr(process, "log_snr"):
            raise ValueError(
                f"sample: expected (batch,) keys for {type(process).__name__}, got a Brownian path, whose "
                "clock is one log-SNR"
            )
        if getattr(rows, "still", False):
            raise ValueError(
                "sample: Langevin correctors draw noise without moving in time, and a Brownian path has none "
                "for them; pass (batch,) keys"
            )
        self._check_apart(rows)

    def _check_apart(self, rows):
        """Refuses known rows whose noise comes of overlapping parts of the path: it would be correlated."""
        if not (isinstance(rows, Tableau) and is_concrete(self.process, rows)):
            return
        weights = np.stack([rows.next[:, -1], rows.base[:, -1]], 1).reshape(rows.nfe, -1)
        noisy = np.any(weights != 0, 1)
        ends = np.sort([self.process.log_snr(np.asarray(t)[noisy]) for t in (rows.t, rows.to)], axis=0)
        ends = ends[:, np.argsort(ends[0])]
        if np.any(ends[0, 1:] < ends[1, :-1] - 1e-6):
            raise ValueError(
                "sample: expected (batch,) keys, got a Brownian path, of which steps that go up in time take "
                "parts that others take: their noise would be correlated"
            )

    def noise(self, t, to, x):
        """Standard normal noise of the step from time `t` to `to`, scalars, in the structure of `x`.

        With `u = exp(2 tau^2 log_snr)` it is `(B(u_to) - B(u_t)) / sqrt(u_to - u_t)`.
        """
        start, end = self.process.log_snr(t), self.process.log_snr(to)
        kept = jnp.exp(-(self.tau**2) * jnp.abs(end - start))  # sqrt(u_t / u_to)
        drawn = jnp.sqrt(-jnp.expm1(-2 * self.tau**2 * jnp.abs(end - start)))

        def leaf(number, like):
            keys = fold_in(fold_in(self.keys, 1), number)
            shape, dtype = like.shape[1:], jnp.promote_types(like.dtype, jnp.float32)
            there = [self._value(keys, at, shape, dtype) for at in (start, end)]
            kept_, drawn_ = kept.astype(dtype), drawn.astype(dtype)
            return (there[1] - kept_ * there[0]) / jnp.where(drawn_ > 0, drawn_, 1.0)

        leaves, structure = jax.tree.flatten(x)
        return jax.tree.unflatten(structure, [leaf(*pair) for pair in enumerate(leaves)])

    def _value(self, keys, log_snr, shape, dtype):
        """`B(u) / sqrt(u)`, `(batch, *shape)`: stationary in log-SNR, standard normal everywhere."""
        finite = jnp.isfinite(log_snr)  # at the ends of time any value will do: its weight is 0
        log_snr = jnp.where(finite, log_snr, 0.0).astype(dtype)
        place = jax.nn.sigmoid(log_snr / SPREAD)

        def between(node, low, high, at):
            (left, y_left), (right, y_right) = low, high
            noise = jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(fold_in(keys, node))
            return _bridge(
                2 * self.tau**2 * (at - left), 2 * self.tau**2 * (right - at), y_left, y_right, noise
            )

        def halve(_, state):
            node, bounds, low, high = state
            middle = 0.5 * (bounds[0] + bounds[1])
            at = SPREAD * (jnp.log(middle) - jnp.log1p(-middle))
            inner = (at, between(node, low, high, at))
            right = place >= middle
            choose = lambda new, old, take: jax.tree.map(lambda a, b: jnp.where(take, a, b), new, old)  # noqa: E731
            bounds = choose((middle, bounds[1]), (bounds[0], middle), right)
            return 2 * node + right, bounds, choose(inner, low, right), choose(inner, high, ~right)

        zero = (jax.random.key_data(keys)[:, 0] & 0).astype(dtype)  # within shard_map it varies as keys do
        blank = jax.vmap(lambda zero: jnp.full(shape, zero))(zero)
        ends = ((jnp.asarray(-jnp.inf, dtype), blank), (jnp.asarray(jnp.inf, dtype), blank))
        state = (jnp.int32(1), (jnp.zeros((), dtype), jnp.ones((), dtype)), *ends)
        node, _, low, high = jax.lax.fori_loop(0, self.depth, halve, state)
        return between(node, low, high, log_snr)


def brownian(keys, process, tau=1.0, depth=16):
    """Brownian paths that drive the reverse SDE of a process, one per sample.

        path = jd.solvers.brownian(keys, process)
        x = jd.sample(path, denoise, process, solver, grid, shape=shape)

    The noise of a step from `s` to `t` of the exact solution (the top of `solvers.exponential`) is
    `c_t exp(-tau^2 log_snr_t)` times the increment of a Brownian motion `B` in the clock
    `u = exp(2 tau^2 log_snr)`, 0 at a = 0 and infinite at c = 0. Steps of any size read their increments
    from one and the same `B`: where the estimate is constant, two half steps are one whole step, and
    solutions converge strongly as steps shrink.

    `B(u) / sqrt(u)` is a stationary Ornstein-Uhlenbeck process in log-SNR, so the values are O(1) over
    the dozen decades of the clock, float32 suffices, and both infinite ends are exact. It is read
    off a virtual tree (Li et al. (2020), arXiv:2001.01328): log-SNR is halved `depth` times around
    the time asked for, each middle drawn from its bridge with the node's own key. Times that differ
    by more than a leaf, `16 / 2^depth` in log-SNR about 0 and 8 times that at +-10, have exactly the law
    of the path; equal times have equal values.

    Args:
      keys: `(batch,)` keys, one per sample; or one key with `jd.sample(..., x=...)` where the batch
        size is known: split it first.
      process: forward process.
      tau: noise level of the reverse SDE that the solver follows, above 0; `ancestral` has 1.
      depth: of the tree; each noise costs `2 depth + 2` draws.

    Raises:
      ValueError: for keys, tau or depth out of range.
    """
    check_positive("brownian", tau=tau)
    if not isinstance(depth, int) or not 1 <= depth <= 22:
        raise ValueError(f"brownian: expected depth between 1 and 22, got {depth}")
    return Brownian(batch_keys(keys, None, "brownian"), process, tau, depth)


def _bridge(before, after, left, right, noise):
    """A point of the stationary process `dy = -y / 2 dv + dW` between two others, `before` and `after` away.

    mean = (sinh(after / 2) left + sinh(before / 2) right) / sinh((before + after) / 2), and the variance
    is 2 sinh(before / 2) sinh(after / 2) / sinh((before + after) / 2); in exponentials that may be 0.
    """
    p, q, whole = (-jnp.expm1(-h) for h in (before, after, before + after))
    whole = jnp.where(whole > 0, whole, 1.0)
    mean = (jnp.exp(-0.5 * before) * q * left + jnp.exp(-0.5 * after) * p * right) / whole
    return mean + jnp.sqrt(jnp.maximum(p * q / whole, 0.0)) * noise
