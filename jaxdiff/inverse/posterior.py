"""One call for every method: a measurement and its name."""

from jaxdiff.core import check_choice, check_made
from jaxdiff.inverse import annealed, transforms, variational, walks
from jaxdiff.inverse.noise import check_noiseless

TRANSFORMS = {
    name: getattr(transforms, name)
    for name in ("dps", "pigdm", "tmpd", "mmps", "jacobian_free", "diffpir", "ddnm", "mcg", "tractable")
}
SOLVERS = {
    "replacement": walks.replacement,
    "repaint": walks.repaint,
    "cyclic_one_way": walks.cyclic_one_way,
    "ddrm": walks.ddrm,
    "flow_chef": walks.flow_chef,
    "daps": annealed.daps,
    "red_diff": variational.red_diff,
}
NOISELESS = ("replacement", "repaint", "cyclic_one_way", "flow_chef")  # they take no noise level


def posterior(denoise, process, operator, y, method="mmps", noise_level=0.0, **options):
    """A denoiser, or a solver, that samples `x0` given a measurement `y = A x0 + noise`.

    Args:
      denoise: denoiser of the prior, `(x, t) -> clean estimate`.
      process: forward process.
      operator: of this module: `mask`, `blur`, `downsample`, `radon`, `fourier`, `colour`, `dense`,
        `compose`, `nonlinear`.
      y: `(batch, ...)`, one measurement per sample.
      method: "dps", "pigdm", "tmpd", "mmps", "jacobian_free", "diffpir", "ddnm", "mcg" or "tractable": these
        are denoisers. "replacement", "repaint", "cyclic_one_way", "ddrm", "flow_chef", "daps" or "red_diff":
        these are solvers, for which `sample` gets `denoise` itself.
      noise_level: standard deviation of the noise in `y`: a number or one measurement's shape; or a model of
        `jd.inverse.noise`. 0 for "ddnm", "replacement", "repaint", "cyclic_one_way" and "flow_chef", which
        copy `y`.
      **options: of the method; see the function of its name.

    Returns:
      A denoiser for any solver, `jd.sample(keys, posterior(...), process, solver, grid, ...)`; or a solver,
      `jd.sample(keys, denoise, process, posterior(...), grid, ...)`.

    Raises:
      ValueError: for an unknown method, with the near ones; settings or shapes that do not fit.
    """
    check_choice("posterior", "method", method, (*TRANSFORMS, *SOLVERS))
    check_made("posterior", "operator", operator, "forward", "jd.inverse.mask(kept) or dense(matrix)")
    if method in TRANSFORMS:
        return TRANSFORMS[method](denoise, process, operator, y, noise_level, **options)
    if method in NOISELESS:
        check_noiseless(method, noise_level)
        return SOLVERS[method](operator, y, **options)
    return SOLVERS[method](operator, y, noise_level, **options)
