"""What every room uses: arrays and checks, the pytree dataclass, per-sample keys."""

from jaxdiff.core.arrays import (
    as_number,
    concrete,
    einsum,
    host,
    is_concrete,
    match_dims,
    matmul,
    namespace,
    on_host,
    quick,
    safe_divide,
    safe_sqrt,
)
from jaxdiff.core.checks import (
    check_choice,
    check_count,
    check_made,
    check_noise,
    check_one_ended,
    check_order,
    check_output,
    check_positive,
    check_seed,
    check_share,
    floating,
    unknown_name,
)
from jaxdiff.core.keys import batch_keys, fold_in, normal_like, typed
from jaxdiff.core.layout import batch_over, constrain_batch
from jaxdiff.core.tangents import quadratic_forms, random_tangents, unit_tangents
from jaxdiff.core.threefry import random_bits
from jaxdiff.core.tree import dataclass, static_field

__all__ = [
    "as_number",
    "batch_keys",
    "batch_over",
    "check_choice",
    "check_count",
    "check_made",
    "check_noise",
    "check_one_ended",
    "check_order",
    "check_output",
    "check_positive",
    "check_seed",
    "check_share",
    "concrete",
    "constrain_batch",
    "dataclass",
    "einsum",
    "floating",
    "fold_in",
    "host",
    "is_concrete",
    "match_dims",
    "matmul",
    "namespace",
    "normal_like",
    "on_host",
    "quadratic_forms",
    "quick",
    "random_bits",
    "random_tangents",
    "safe_divide",
    "safe_sqrt",
    "static_field",
    "typed",
    "unit_tangents",
    "unknown_name",
]
