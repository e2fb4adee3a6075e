"""The ranks' collective over torch.distributed; it knows no Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pft_ray.training.types import NoisyShare


class GlooCollective:
    """All ranks of the worker group, over gloo; two calls a step."""

    def gather(self, words: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Returns the words of all ranks, in rank order."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return [words]
        own = torch.from_numpy(np.ascontiguousarray(words))
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        return [part.numpy() for part in parts]

    def reduce(self, share: NoisyShare) -> torch.Tensor:
        """Returns the sum of all ranks' noisy shares; a failure is never retried."""
        return self.reduce_public(share.vector)

    def reduce_public(self, vector: torch.Tensor) -> torch.Tensor:
        """Returns the sum of all ranks' vectors, which hold nothing private."""
        total = vector.clone()
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(total)
        return total
