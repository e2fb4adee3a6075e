"""A record that breaks its computation: nothing released tells, no other is touched.

Whole runs on neighbouring files under equal keys: one with a record that raises, runs
out of memory or is not finite, one without that record, one in which it is sound.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pft_ray.cluster import trainer, worker
from pft_ray.cluster.registration import create_budget
from pft_ray.cluster.trainer import PrivateTrainer
from pft_ray.data import SplitSpec, role_of
from pft_ray.errors import ModelError, RunFailedError
from pft_ray.training import models, prefix
from pft_ray.training.classifier import TextClassifier
from pft_ray.training.local import LocalWork
from tests.contracts.searches import release_files, shape_of
from tests.contracts.stage import FIXED, FixedKeys, set_stage
from tests.tiny_job import make_model, make_rows, write_csv, write_job

MARKER = 63  # the token of the last word; only the poison records hold it
ROLES = ("train", "validation")
RAISED = {
    "raises": lambda: ValueError("of one record"),
    "out of memory": lambda: MemoryError(),
    "allocator": lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory"),
}
VALUES = {"nan": float("nan"), "infinite": float("inf"), "huge": 1e38}
KINDS = (*RAISED, *VALUES)


def rows_with(*, poison: bool) -> list[dict]:
    """Sixty sound rows and, on request, one poison row in each block."""
    rows = make_rows(60)
    for row in rows:
        row["text"] = row["text"].replace("word59", "word58")
    if not poison:
        return rows
    split = SplitSpec(salt="1", validation_fraction=0.25)
    for role in ROLES:
        numbers = iter(range(1000))
        name = next(
            f"p{n}" for n in numbers if role_of(f"p{n}".encode(), split) == role
        )
        rows.append(
            {"id": name, "text": f"word59 word1 {role}", "label": "yes", "sender": "p"}
        )
    return rows


@dataclass
class Outcome:
    """What a run left, and every sum that its ranks were about to noise."""

    result: object
    sums: dict[tuple[int, int], torch.Tensor]
    drawn: int

    @property
    def operator(self) -> dict:
        return json.loads((self.result.folder / "operator.json").read_bytes())

    @property
    def adapter(self) -> dict[str, torch.Tensor]:
        return load_file(self.result.folder / "adapter" / "adapter_model.safetensors")


def holds_marker(batch) -> torch.Tensor:
    return (batch.input_ids == MARKER).any(1)


def break_records(patch, kind: str) -> None:
    """Makes the model fail on the poison records, and on those alone."""
    features, run_prefix = TextClassifier.features, prefix.run_prefix

    def spoil(values, batch):
        if kind in RAISED:
            if bool(holds_marker(batch).any()):
                raise RAISED[kind]()
            return values()
        found = values()
        factors = torch.where(holds_marker(batch), VALUES[kind], 1.0)
        return found * factors.reshape(-1, *[1] * (found.ndim - 1))

    patch.setattr(
        TextClassifier,
        "features",
        lambda self, batch: spoil(lambda: features(self, batch), batch),
    )
    patch.setattr(
        prefix,
        "run_prefix",
        lambda stack, family, batch, depth: spoil(
            lambda: run_prefix(stack, family, batch, depth), batch
        ),
    )
    for module in (models, prefix):
        made_up = module.synthetic_batch

        def without_marker(*args, made_up=made_up, **kwargs):
            batch = made_up(*args, **kwargs)
            return replace(batch, input_ids=batch.input_ids.clamp(max=MARKER - 1))

        patch.setattr(module, "synthetic_batch", without_marker)


def run(folder: Path, model: Path, kind=None, *, poison=True, **changes) -> Outcome:
    """Makes a whole run under keys that all runs here share."""
    sums: dict[tuple[int, int], torch.Tensor] = {}
    drawn = []
    clipped_sum = LocalWork.clipped_sum

    def noting(self, positions, clip_norm):
        found = clipped_sum(self, positions, clip_norm)
        rank = id(self)  # each rank has its own
        sums[(rank, sum(r == rank for r, _ in sums))] = found.vector
        rows = self._table.input_ids[positions]
        drawn.append(int((rows == MARKER).any(1).sum()))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PFT_HOME", str(folder / "home"))
        keys = folder / "home" / "keys"
        keys.mkdir(parents=True, mode=0o700)
        (keys / "fingerprint.key").write_bytes(FIXED)
        (keys / "fingerprint.key").chmod(0o600)
        job_folder = folder / "job"
        job_folder.mkdir()
        (job_folder / "model").symlink_to(model)
        write_csv(job_folder / "data.csv", rows_with(poison=poison))
        job = write_job(
            job_folder,
            cluster__workers=2,
            data__num_train=45,
            data__num_validation=15,
            training__batch_size=15,
            training__max_micro_batch=4,
            model__lora__layers=[1],
            **changes,
        )
        create_budget(job)
        set_stage(patch)
        if kind is not None:
            break_records(patch, kind)
        patch.setattr(LocalWork, "clipped_sum", noting)
        patch.setattr(PrivateTrainer, "coordinator_class", FixedKeys)
        patch.setattr(trainer, "new_run_id", lambda _name: "run-1")
        result = PrivateTrainer(job).fit()
    return Outcome(result, sums, sum(drawn))


def totals(outcome: Outcome) -> list[torch.Tensor]:
    """Returns the sum over the ranks of each step, in the order of steps."""
    steps = sorted({step for _, step in outcome.sums})
    return [
        sum(vector for (_, at), vector in outcome.sums.items() if at == step)
        for step in steps
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def absent(tmp_path_factory, model):
    """The run without the poison records."""
    return run(tmp_path_factory.mktemp("absent"), model, None, poison=False)


@pytest.fixture(scope="module")
def sound(tmp_path_factory, model):
    """The run in which they are sound records."""
    return run(tmp_path_factory.mktemp("sound"), model, None)


@pytest.fixture(scope="module", params=KINDS)
def poisoned(request, tmp_path_factory, model):
    return run(tmp_path_factory.mktemp("poisoned"), model, request.param)


def test_the_record_takes_part_when_it_is_sound(sound, absent):
    """Else the comparison below would compare nothing."""
    assert sound.drawn >= 2
    assert absent.drawn == 0
    moved = [
        float((one - other).norm())
        for one, other in zip(totals(sound)[:8], totals(absent)[:8], strict=True)
    ]
    assert max(moved) > 0.01


def test_every_other_contribution_is_as_without_the_record(poisoned, absent):
    assert poisoned.drawn >= 2, "the record was drawn"
    found, expected = totals(poisoned), totals(absent)
    assert len(found) == len(expected) == 16
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        clip_norm = 1.0 if step < 8 else 0.5
        assert float((one - other).norm()) <= 1e-4 * clip_norm, step
    for name, tensor in absent.adapter.items():
        torch.testing.assert_close(
            poisoned.adapter[name], tensor, rtol=1e-3, atol=1e-4, msg=name
        )


def test_nothing_released_tells_that_a_record_was_faulty(poisoned, absent, sound):
    result = poisoned.result
    assert result.status == "completed"
    for other in (absent.result, sound.result):
        files = [p.relative_to(result.folder) for p in release_files(result.folder)]
        names = [p.relative_to(other.folder) for p in release_files(other.folder)]
        assert files == names
        for name in files:
            assert shape_of(result.folder / name) == shape_of(other.folder / name)
        for name in result.report.keys() - {"utility", "utility_all", "ledger"}:
            assert result.report[name] == other.report[name], name
        assert result.report["ledger"]["sequence"] == 1


def test_a_faulty_record_changes_no_attempt_and_no_charge(poisoned, absent):
    for name in ("attempts", "num_steps_charged", "num_steps_released"):
        assert poisoned.operator[name] == absent.operator[name], name
    assert poisoned.operator["attempts"] == 1
    assert poisoned.operator["looks_charged"] == absent.operator["looks_charged"] == 2
    assert poisoned.operator["exit_cause"] == ""


SECRET = "SECRET-OF-A-RECORD"


def assert_nowhere(folder: Path, error: BaseException | None = None) -> None:
    """No file of the run and no error that the user sees quotes the record."""
    for path in folder.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path.name
    if error is not None:
        assert SECRET not in str(error) + repr(error.__dict__)


def test_the_words_of_a_records_error_are_nowhere(tmp_path, model):
    """They may quote a record: not even the operator's files hold them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RAISED, "raises", lambda: ValueError(SECRET))
        outcome = run(tmp_path, model, "raises")
    assert outcome.operator["num_faulty_records"] == 1
    assert_nowhere(tmp_path / "job" / "runs")


@pytest.mark.parametrize("max_failures", [0, 3])
def test_the_words_of_an_error_that_ends_the_run_are_nowhere(
    tmp_path, model, monkeypatch, max_failures
):
    """A fault that is no record's, such as a defect, ends every group in the end."""

    def broken(self, grad):
        raise ValueError(SECRET)

    monkeypatch.setattr(LocalWork, "apply", broken)
    with pytest.raises(RunFailedError) as caught:
        run(tmp_path, model, cluster__max_failures=max_failures)
    assert_nowhere(tmp_path / "job" / "runs", caught.value)
    (notes,) = (tmp_path / "job" / "runs").glob("*/operator.json")
    cause = json.loads(notes.read_bytes())["exit_cause"]
    if max_failures == 0:
        assert "ValueError in training/step.py, line" in cause
    else:
        assert "2 times in the steps charged up to step 2" in cause


def test_an_error_of_ours_reaches_the_user_in_its_own_words(
    tmp_path, model, monkeypatch
):
    def refused(self):
        raise ModelError("The model is not usable.", "Use another.")

    monkeypatch.setattr(worker.Worker, "_restore", refused)
    with pytest.raises(ModelError, match=r"^The model is not usable\. Use another\.$"):
        run(tmp_path, model)
