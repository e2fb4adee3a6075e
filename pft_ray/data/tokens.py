"""Tokenised units as plain arrays of public shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class TokenTable:
    """Units of one block, one row each, padded to the job's max_length T.

    Attributes:
        input_ids: int32 (n, T), padded on the right.
        lengths: int32 (n,), tokens that are not padding; 0 marks a faulty record,
            which takes part with a contribution of zero.
        digests: uint8 (n, 16), distinct keyed digests of the unit ids.
        targets: int64 (n,) class indices, or None for causal language models.
        loss_mask: uint8 (n, T), 1 where a token is predicted and counts in the
            loss, or None for classification.
        users: uint8 (n, 16), digest of the user of each, or None.
        owners: int64 (n,), number of the owner of each, or None.
    """

    input_ids: NDArray[np.int32]
    lengths: NDArray[np.int32]
    digests: NDArray[np.uint8]
    targets: NDArray[np.int64] | None = None
    loss_mask: NDArray[np.uint8] | None = None
    users: NDArray[np.uint8] | None = None
    owners: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def max_length(self) -> int:
        """T, the public padded length."""
        return int(self.input_ids.shape[1])

    def take(self, positions: NDArray[np.int64]) -> TokenTable:
        """Returns the rows at ``positions``, in that order."""
        return TokenTable(
            input_ids=self.input_ids[positions],
            lengths=self.lengths[positions],
            digests=self.digests[positions],
            targets=None if self.targets is None else self.targets[positions],
            loss_mask=None if self.loss_mask is None else self.loss_mask[positions],
            users=None if self.users is None else self.users[positions],
            owners=None if self.owners is None else self.owners[positions],
        )
