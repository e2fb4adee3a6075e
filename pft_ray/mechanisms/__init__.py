"""Randomised algorithms on arrays; each documents the event it returns."""

from pft_ray.mechanisms.counts import (
    ClassificationLayout,
    classification_counts,
    clipped_loss_sum,
    discrete_gaussian,
    noisy_counts,
)
from pft_ray.mechanisms.gaussian import noise_share, secure_normals, share_std
from pft_ray.mechanisms.sampled_gaussian import SampledGaussian
from pft_ray.mechanisms.sampling import poisson_sample, sampling_threshold
from pft_ray.mechanisms.shares import (
    ShareHeader,
    assign_shares,
    check_headers,
    header_length,
)

__all__ = [
    "ClassificationLayout",
    "SampledGaussian",
    "ShareHeader",
    "assign_shares",
    "check_headers",
    "classification_counts",
    "clipped_loss_sum",
    "discrete_gaussian",
    "header_length",
    "noise_share",
    "noisy_counts",
    "poisson_sample",
    "sampling_threshold",
    "secure_normals",
    "share_std",
]
