"""Stochastic solvers that discretise the reverse SDE in time or with stages in log-SNR."""

from jaxdiff.core import check_choice, check_order, namespace, safe_divide, safe_sqrt
from jaxdiff.solvers.exponential import check_level, is_noisy, level_of_steps, transition
from jaxdiff.solvers.singlestep import dpm_singlestep, dpmpp_singlestep
from jaxdiff.solvers.tableau import linear, table


def euler_maruyama(tau=1.0):
    """Euler-Maruyama on the reverse SDE with noise level `tau` (0: the ODE, 1: the forward SDE's).

        x_t = x_s + (t - s) (f x_s - (1 + tau^2) / 2 g^2 score) + tau g sqrt(s - t) noise
        score = (a D - x_s) / c^2

    Song et al. (2021), arXiv:2011.13456, eq. 6; with `tau`, Karras et al. (2022), arXiv:2206.00364,
    eq. 6. A step to c = 0 returns the clean estimate; a step from a = 0, where `f` and `g` are infinite,
    is the exact transition given that estimate. `tau` as in `dpmpp_multistep`.
    """
    return linear("euler_maruyama", _euler_maruyama, tau=check_level("euler_maruyama", tau))


def reverse_diffusion(tau=1.0):
    """The reverse SDE discretised as the forward process is, ancestral sampling's nearest relative.

        x_t = (2 - a_s / a_t) x_s + (1 + tau^2) / 2 G^2 score + tau G noise,    t < s
        G^2 = c_s^2 - (a_s / a_t)^2 c_t^2,    score = (a_s D - x_s) / c_s^2

    Song et al. (2021), arXiv:2011.13456, appendix E, eq. 46; tau = 0 is their eq. 47, the
    probability-flow sampler. Ends as in `euler_maruyama`; `tau` as in `dpmpp_multistep`.
    """
    return linear("reverse_diffusion", _reverse_diffusion, tau=check_level("reverse_diffusion", tau))


def seeds(order=3, tau=1.0, prediction="noise"):
    """SEEDS-1, -2, -3: exponential steps of the reverse SDE, `order` evaluations a step.

    `dpm_singlestep` with noise, nodes at 1/2, or at 1/3 and 2/3, on one path of the SDE. SEEDS-2, tau = 1:

        u   = (a_m / a_s) x_s - 2 c_m (exp(h / 2) - 1) E(x_s) + c_m sqrt(exp(h) - 1) z_1
        x_t = (a_t / a_s) x_s - 2 c_t (exp(h) - 1) E(u)
              + c_t (sqrt(exp(2 h) - exp(h)) z_1 + sqrt(exp(h) - 1) z_2)

    Gonzalez et al. (2023), arXiv:2305.14267, algorithms 2 to 4. On Gaussian data the law of the samples
    converges at second order for orders 2 and 3; at tau = 0 these are DPM-Solver-2 and -3.

    Args:
      order: 1, 2 or 3.
      tau: noise level, as in `dpmpp_multistep`.
      prediction: "noise" (the paper's; its noise grows like `exp(h)`, useless below some 40 evaluations)
        or "data".
    """
    order, tau = check_order("seeds", order, (1, 2, 3)), check_level("seeds", tau)
    check_choice("seeds", "prediction", prediction, ("noise", "data"))
    make = dpm_singlestep if prediction == "noise" else dpmpp_singlestep
    return make(order, tau=tau).replace(name=f"seeds({order})")


def _euler_maruyama(process, grid, tau):
    tau = level_of_steps(tau, grid)
    xp = namespace(grid, process, tau)
    a, _, c = process.coefficients(grid)
    regular = xp.where(a[:-1] == 0, 0.5 * (grid[:-1] + grid[1:]), grid[:-1])
    f, g2 = process.sde(regular)
    dt = grid[1:] - grid[:-1]
    pull = 0.5 * (1 + tau**2) * g2 / c[:-1] ** 2
    moves = 1 + dt * (f + pull), -dt * pull * a[:-1], tau * safe_sqrt(-dt * g2)
    return _with_ends(process, grid, tau, moves)


def _reverse_diffusion(process, grid, tau):
    tau = level_of_steps(tau, grid)
    xp = namespace(grid, process, tau)
    a, _, c = process.coefficients(grid)
    h = process.log_snr(grid[1:]) - process.log_snr(grid[:-1])
    kappa = -xp.expm1(-2 * xp.where(xp.isfinite(h), h, 1.0))  # G^2 = c_s^2 kappa
    pull = 0.5 * (1 + tau**2) * kappa
    moves = 2 - safe_divide(a[:-1], a[1:]) - pull, pull * a[:-1], tau * c[:-1] * safe_sqrt(kappa)
    return _with_ends(process, grid, tau, moves)


def _with_ends(process, grid, tau, moves):
    """The table of steps with weights `(x, D, noise)`, but for those to c = 0, from a = 0 and up to it."""
    xp = namespace(grid, process, tau)
    a, _, c = process.coefficients(grid)
    h = process.log_snr(grid[1:]) - process.log_snr(grid[:-1])
    exact_x, exact_noise = transition(xp, c[:-1], c[1:], h, tau)
    from_noise, to_data, to_noise = a[:-1] == 0, c[1:] == 0, a[1:] == 0
    up = safe_divide(c[1:], c[:-1])
    ends = (exact_x, 0.0, up), (a[1:], 1.0, -up * a[:-1]), (exact_noise, 0.0, 0.0)
    x_s, estimate, noise = (
        xp.where(to_data, data, xp.where(from_noise, prior, xp.where(to_noise, above, move)))
        for move, (prior, data, above) in zip(moves, ends, strict=True)
    )
    return table(grid[:-1], [x_s, 0.0, estimate, noise], noisy=is_noisy(tau))
