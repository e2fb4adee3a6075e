"""The best that was found without privacy, for the same model and records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pieces
import torch

from pft_ray.training.prefix import PrefixCache

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pft_ray.config import BuiltJob
    from pft_ray.data.tokens import TokenTable
    from pft_ray.training.models import TrainedModel

PENALTIES = (1e-3, 1e-2, 3e-2, 1e-1)
RATES = (1e-3, 3e-3, 1e-2)
EPOCHS = 4
BATCH = 64


@dataclass(frozen=True)
class Found:
    """One way to train without privacy, and its exact scores."""

    recipe: str
    scores: pieces.Scores


class Plain:
    """Trains the job's model with ordinary autograd on cached frozen layers."""

    def __init__(
        self, built: BuiltJob, train: TokenTable, validation: TokenTable
    ) -> None:
        self._model: TrainedModel = pieces.fresh_model(built)
        self._tables = (train, validation)
        self._caches = [
            PrefixCache(self._model, t, chunk_rows=64) for t in self._tables
        ]
        self._initial = {
            name: value.detach().clone()
            for name, value in self._model.kept_parameters()
        }

    def everything(self) -> list[Found]:
        """Tries all recipes; the best is picked by the very scores it is shown for."""
        found = [self.logistic(penalty) for penalty in PENALTIES]
        return found + [self.adapters(rate) for rate in RATES]

    def logistic(self, penalty: float) -> Found:
        """Logistic regression on the frozen features, to its optimum."""
        features = [self._features(i) for i in (0, 1)]
        mean, spread = features[0].mean(0), features[0].std(0) + 1e-6
        train, validation = ((part - mean) / spread for part in features)
        head = torch.nn.Linear(train.shape[1], 2)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        targets = torch.from_numpy(self._targets(0))
        optimizer = torch.optim.LBFGS(head.parameters(), max_iter=300)

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            value = torch.nn.functional.cross_entropy(head(train), targets)
            value = value + penalty * head.weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        with torch.no_grad():
            probabilities = head(validation).softmax(1).numpy()
        name = f"logistic regression on frozen features, penalty {penalty:g}"
        return Found(name, pieces.score(probabilities, self._targets(1)))

    def adapters(self, rate: float) -> Found:
        """LoRA and head by AdamW in mini-batches, the rate falling to zero."""
        self._reset("adapter+head")
        count = len(self._tables[0])
        steps = EPOCHS * -(-count // BATCH)
        named = self._model.named_parts("adapter+head")
        optimizer = torch.optim.AdamW([p for _, p in named], lr=rate)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
        generator = np.random.default_rng(1)
        for _ in range(EPOCHS):
            order = generator.permutation(count)
            for start in range(0, count, BATCH):
                rows = order[start : start + BATCH]
                self._model.losses(self._caches[0].batch(rows)).mean().backward()
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
        name = f"LoRA and head, {EPOCHS} epochs of batches of {BATCH}, rate {rate:g}"
        return Found(name, self._score())

    def _reset(self, trainable: str) -> None:
        self._model.set_trainable(trainable)
        with torch.no_grad():
            for name, value in self._model.kept_parameters():
                value.copy_(self._initial[name])
        for cache in self._caches:
            cache.start_phase(trainable)

    def _features(self, index: int) -> torch.Tensor:
        self._reset("head")
        batch = self._caches[index].batch(np.arange(len(self._tables[index])))
        assert batch.features is not None
        return batch.features

    def _targets(self, index: int) -> NDArray[np.int64]:
        targets = self._tables[index].targets
        assert targets is not None
        return targets

    @torch.no_grad()
    def _score(self) -> pieces.Scores:
        rows = np.arange(len(self._tables[1]))
        parts = [
            self._model.probabilities(self._caches[1].batch(rows[i : i + BATCH]))
            for i in range(0, len(rows), BATCH)
        ]
        return pieces.score(torch.cat(parts).numpy(), self._targets(1))
