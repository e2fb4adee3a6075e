"""The factor that bounds one record's gradient."""

from __future__ import annotations

import torch

_UNIT_ROUNDOFF = 2.0**-53


def clip_factors(
    norms: torch.Tensor, clip_norm: float, num_parameters: int
) -> torch.Tensor:
    """Returns c_i = min(1, C / (norm_i * (1 + slack))), 0 where norm_i is not finite.

    ``slack`` is (P + 64) * 2**-53, the worst rounding of a norm of P coordinates that
    is accumulated in fp64 and of the products that follow it. Sums in fp32 carry their
    own, larger allowance already (``contributions.squared_row_norms``).

    Args:
        norms: (B,) fp64 norms of the per-record gradients, or upper bounds of them.
        clip_norm: C > 0.
        num_parameters: P.

    Returns:
        (B,) fp64 factors in [0, 1].

    Guarantee:
        c_i times a vector whose fp64 norm is norm_i has norm at most C, computed or
        exact (Abadi et al. 2016, with the rounding of the arithmetic included).
    """
    return largest_factors(norms, clip_norm, num_parameters).clamp(max=1.0)


def largest_factors(
    norms: torch.Tensor, clip_norm: float, num_parameters: int
) -> torch.Tensor:
    """Returns C / (norm_i * (1 + slack)), 0 where norm_i is not finite: also above 1.

    The arguments and the slack are those of :func:`clip_factors`; so is the bound.
    """
    slack = (num_parameters + 64) * _UNIT_ROUNDOFF
    tiny = torch.finfo(torch.float64).tiny
    factors = clip_norm / (norms * (1 + slack) + tiny)
    usable = torch.isfinite(norms) & (factors >= tiny)  # below it rounding is coarse
    return torch.where(usable, factors, 0.0)
