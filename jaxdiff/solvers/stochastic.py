"""Stochastic solvers in time."""

from jaxdiff.core import concrete, namespace, safe_sqrt
from jaxdiff.solvers.exponential import transition
from jaxdiff.solvers.tableau import linear, table


def euler_maruyama(tau=1.0):
    """Euler-Maruyama on the reverse SDE with noise level `tau` (0: the ODE, 1: the forward SDE's).

        x_t = x_s + (t - s) (f x_s - (1 + tau^2) / 2 g^2 score) + tau g sqrt(s - t) noise
        score = (a D - x_s) / c^2

    Song et al. (2021), arXiv:2011.13456, eq. 6; with `tau`, Karras et al. (2022), arXiv:2206.00364,
    eq. 6. A step to c = 0 returns the clean estimate; a step from a = 0, where `f` and `g` are infinite,
    is the exact transition given that estimate.
    """
    if isinstance(tau, (int, float)) and tau < 0:
        raise ValueError(f"euler_maruyama: expected tau of at least 0, got {tau}")
    return linear("euler_maruyama", _euler_maruyama, tau=float(tau) if isinstance(tau, int) else tau)


def _euler_maruyama(process, grid, tau):
    xp = namespace(grid, process, tau)
    a, _, c = process.coefficients(grid)
    from_noise, to_data = a[:-1] == 0, c[1:] == 0
    regular = xp.where(from_noise, 0.5 * (grid[:-1] + grid[1:]), grid[:-1])
    f, g2 = process.sde(regular)
    dt = grid[1:] - grid[:-1]
    pull = 0.5 * (1 + tau**2) * g2 / c[:-1] ** 2
    h = process.log_snr(grid[1:]) - process.log_snr(grid[:-1])
    exact_x, exact_noise = transition(xp, c[:-1], c[1:], h, tau)

    def choose(regular, from_noise_value, to_data_value):
        return xp.where(to_data, to_data_value, xp.where(from_noise, from_noise_value, regular))

    x_s = choose(1 + dt * (f + pull), exact_x, 0.0)
    estimate = choose(-dt * pull * a[:-1], a[1:], 1.0)
    noise = choose(tau * safe_sqrt(-dt * g2), exact_noise, 0.0)
    return table(grid[:-1], [x_s, 0.0, estimate, noise], noisy=concrete(tau) is None or tau > 0)
