"""The sections of a job file as frozen pydantic models; unknown keys are refused.

Everything that has a shape or a constant (sizes, labels, lengths, norms) is declared
here and is public. Nothing is counted from private data.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pft_ray.accounting.events import MOST_RECORDS_PER_USER
from pft_ray.config.base import (
    Count,
    Delta,
    Epsilon,
    Name,
    NonNegative,
    Positive,
    Rate,
    Section,
    Text,
    exactly_one,
)
from pft_ray.config.consistency import check_consistent
from pft_ray.config.data_section import DataSection
from pft_ray.config.elastic import ElasticSection, FaultsSection
from pft_ray.config.filters import FilterSection
from pft_ray.config.lora import LoraSection
from pft_ray.config.owners import OwnersSection, check_mode
from pft_ray.config.quantile import QuantileSection
from pft_ray.errors import ConfigError

if TYPE_CHECKING:
    from pft_ray.data.spec import DataSpec


class ModelSection(Section):
    """The public base model and its task."""

    path: Text = Field(
        description="Folder, package:module/sub/folder, or hub:org/name@revision."
    )
    task: Literal["classification", "causal_lm"] = Field(
        "classification", description="A head on pooled states, or next tokens."
    )
    pooling: Literal["mean", "cls", "last"] = Field(
        "mean", description="How a text becomes one vector, for classification."
    )
    lora: LoraSection | None = Field(None, description="Low-rank adapters.")
    gradient_checkpointing: bool = Field(
        False, description="Less memory for about a third more time."
    )
    dropout: bool = Field(
        False, description="Train with the dropout rates of the model's own config."
    )


class PrivacySection(Section):
    """The guarantee that is asked for."""

    unit: Literal["record", "user"] = Field(
        "record", description="Whose presence is hidden; user: a value of data.user."
    )
    mode: Literal["central", "owners", "sequential"] = Field(
        "central",
        description="One mechanism; one epsilon an owner; or independent workers.",
    )
    owners: OwnersSection | None = Field(None, description="mode owners: who they are.")
    user_level: Literal["uls", "els", "auto"] | None = Field(
        None,
        description="unit user: sample users (uls) or records (els), or the one with "
        "less noise (auto); default: uls.",
    )
    max_records_per_user: (
        Annotated[int, Field(ge=1, le=MOST_RECORDS_PER_USER)] | None
    ) = Field(None, description="unit user: records of a user that are used at most.")
    num_train_records: Count | None = Field(
        None, description="unit user: declared training records after that cap."
    )
    user_contribution: Literal["mean", "sum"] | None = Field(
        None, description="uls: a user's mean (default) or summed gradient is clipped."
    )
    accounting: Literal["plan", "filter"] = Field(
        "plan", description="Mode of the blocks: whole envelopes by PLD, or rho."
    )
    filter: FilterSection | None = Field(None, description="accounting filter: how.")
    epsilon: Epsilon | None = Field(
        None, description="Target at T_max, by PLD; accounting filter: at the order."
    )
    noise_multiplier: Annotated[float, Field(ge=0.01, le=1e6)] | None = Field(
        None, description="sigma, in place of epsilon."
    )
    delta: Delta = Field(1e-5, description="Below 1/num_train.")
    fault_reserve: NonNegative | None = Field(
        None, description="Extra steps that pay for faults; default from the plan."
    )
    block: Name | None = Field(None, description="Default: registration/train.")

    @field_validator("unit", mode="before")
    @classmethod
    def _known_unit(cls, value: object) -> object:
        if value == "owner":
            raise ConfigError(
                "privacy.unit is 'owner', but this version samples and clips records "
                "and users: it cannot hide all records of one owner.",
                "Use unit: user, and know that it protects each user by itself.",
            )
        return value

    @model_validator(mode="after")
    def _one_of(self) -> PrivacySection:
        check_mode(self)
        if self.mode != "owners":
            exactly_one("privacy", self, "epsilon", "noise_multiplier")
        return self


class PhaseSection(Section):
    """A stretch of steps with one trainable set, clip norm and learning rate."""

    name: Name = Field(description="Name of the phase, for reports.")
    steps: Count = Field(description="Planned steps.")
    trainable: Literal[
        "head", "adapter", "adapter+head", "biases", "biases+head", "all"
    ] = Field(description="What is trained.")
    clip_norm: Positive = Field(
        description="Largest contribution of a record, C; the first one if adaptive."
    )
    clipping: Literal["flat", "automatic", "per_layer", "adaptive"] = Field(
        "flat",
        description="As a whole, normalised, layer by layer, or as a whole with a C "
        "that follows a quantile of the norms.",
    )
    quantile: QuantileSection | None = Field(
        None, description="How C moves; adaptive only."
    )
    learning_rate: Positive = Field(description="Peak rate.")
    head_learning_rate: Positive | None = Field(
        None, description="Peak rate of the head; default: learning_rate."
    )
    warmup_steps: NonNegative = Field(0, description="Steps up to the peak rate.")
    decay: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="How the rate falls after the peak."
    )

    @model_validator(mode="after")
    def _schedule(self) -> PhaseSection:
        if self.warmup_steps > self.steps:
            raise ConfigError(
                f"warmup_steps of phase {self.name!r} is {self.warmup_steps}, but the "
                f"phase has {self.steps} steps.",
                "Give a warm-up no longer than the phase.",
            )
        if self.quantile is not None and self.clipping != "adaptive":
            raise ConfigError(
                f"Phase {self.name!r} has a quantile, but its clipping is "
                f"{self.clipping}, whose C does not move.",
                "Set clipping: adaptive, or remove quantile.",
            )
        if self.head_learning_rate is not None and "head" not in self.trainable:
            raise ConfigError(
                f"Phase {self.name!r} has a head_learning_rate but trains no head.",
                "Remove head_learning_rate, or train adapter+head.",
            )
        return self


class TrainingSection(Section):
    """How the model is trained."""

    batch_size: Count | None = Field(None, description="Expected units a step, q*n.")
    sample_rate: Rate | None = Field(
        None, description="Probability q of a unit to be in a step."
    )
    phases: tuple[PhaseSection, ...] = Field(
        min_length=1, description="Stretches of steps, one after the other."
    )
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="The optimiser.")
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.0, description="Rate of weight decay."
    )
    seed: Annotated[int, Field(ge=0, lt=2**62)] = Field(
        0, description="Public seed of initial weights only."
    )
    autocast: Literal["bf16"] | None = Field(
        None, description="Run forward passes of training in bf16 where it is safe."
    )
    max_micro_batch: Annotated[int, Field(ge=1, le=4096)] = Field(
        64, description="Units a forward pass at most."
    )
    memory_limit_gib: Positive | None = Field(
        None, description="Fit the micro-batch to this size of a worker's process."
    )
    checkpoint_interval: Count | None = Field(
        None, description="Steps between checkpoints; default: T/20, from 1 to 5."
    )
    grant_size: Count | None = Field(
        None, description="Steps charged at a time; default: T/20, from 1 to 5."
    )
    noise_shares: Count | None = Field(None, description="Default: one a worker.")
    baseline: bool = Field(
        False, description="Also train without privacy; public data sets only."
    )

    @model_validator(mode="after")
    def _one_of(self) -> TrainingSection:
        exactly_one("training", self, "batch_size", "sample_rate")
        names = [phase.name for phase in self.phases]
        if len(set(names)) != len(names):
            raise ConfigError(
                f"training.phases has two phases of one name: {', '.join(names)}.",
                "Give every phase a name of its own.",
            )
        return self


class EvaluationSection(Section):
    """The charged looks at the validation block."""

    looks: tuple[Count, ...] | None = Field(
        None,
        min_length=1,
        description="Step counts; default: the end of each phase.",
    )
    epsilon: Epsilon | None = Field(None, description="Default: privacy.epsilon.")
    delta: Delta | None = Field(None, description="Default: privacy.delta.")
    spare_looks: NonNegative = Field(
        1, description="Looks paid for in case a crash loses one."
    )
    num_bins: Annotated[int, Field(ge=2, le=200, multiple_of=2)] = Field(
        20, description="Score bins a class; an even number."
    )
    loss_bound: Positive = Field(
        10.0, description="Largest loss that counts, in nats, for causal_lm."
    )
    block: Name | None = Field(None, description="Default: registration/validation.")

    @model_validator(mode="after")
    def _rising(self) -> EvaluationSection:
        if self.looks is not None and list(self.looks) != sorted(set(self.looks)):
            raise ConfigError(
                f"evaluation.looks is {list(self.looks)}.",
                "Give step counts in rising order, each once.",
            )
        return self


class ClusterSection(Section):
    """Workers and where they run; none of it changes the guarantee."""

    workers: Annotated[int, Field(ge=1, le=4096)] = Field(
        1, description="Number of workers; with elastic, to start with."
    )
    cpus_per_worker: Positive = Field(1.0, description="CPUs of each; 0.5 is allowed.")
    address: Text | None = Field(None, description="Ray address; default: local.")
    max_failures: NonNegative = Field(
        3, description="Worker deaths a start survives before it ends."
    )
    tolerate_missing: NonNegative = Field(
        0, description="Owners or independent workers that may be absent, t."
    )
    placement_timeout_s: Positive = Field(
        60.0, description="How long to wait for nodes that hold the workers."
    )
    file: Text | None = Field(
        None,
        description="Ray cluster file: which nodes there may be. Without an address "
        "its nodes are started on this machine for the run.",
    )
    regions: tuple[Name, ...] | None = Field(
        None, min_length=1, description="Regions where workers may be, by node label."
    )
    elastic: ElasticSection | None = Field(
        None, description="Sizes between which the worker group moves."
    )
    faults: FaultsSection | None = Field(
        None, description="Public failure rates that set interval and reserve."
    )

    @property
    def most_workers(self) -> int:
        """The largest worker group that the job allows."""
        return self.workers if self.elastic is None else self.elastic.max_workers

    @property
    def park_timeout_s(self) -> float:
        """How long workers wait at a boundary for a planned resize."""
        return self.elastic.park_timeout_s if self.elastic is not None else 0.0


class LedgerSection(Section):
    """Where the durable ledger is."""

    url: Text | None = Field(
        None,
        repr=False,  # it may hold a password
        description="A path, sqlite:///path or postgresql://host/database; "
        "default: $PFT_HOME/ledger.db.",
    )


class JobSpec(Section):
    """A whole job file."""

    version: Literal[1] = Field(1, description="Version of this format.")
    name: Name = Field(description="Name of the job; runs are named after it.")
    data: DataSection
    model: ModelSection
    privacy: PrivacySection
    training: TrainingSection
    evaluation: EvaluationSection | None = Field(
        EvaluationSection(), description="Charged looks; null for none."
    )
    cluster: ClusterSection = ClusterSection()
    ledger: LedgerSection = LedgerSection()
    output: Text = Field("runs", description="Folder of run folders, from here.")

    @model_validator(mode="after")
    def _consistent(self) -> JobSpec:
        check_consistent(self)
        return self

    def data_spec(self, base_dir: Path) -> DataSpec:
        """Returns the data section, resolved, with the column of owners."""
        owners = self.privacy.owners
        column = owners.field if owners is not None else None
        return replace(self.data.spec(base_dir), owner=column)

    @property
    def num_steps(self) -> int:
        """T, the planned steps of all phases."""
        return sum(phase.steps for phase in self.training.phases)

    @property
    def training_block(self) -> str:
        """Name of the block that training is charged to."""
        return self.privacy.block or f"{self.data.registration}/train"

    @property
    def validation_block(self) -> str:
        """Name of the block that evaluation is charged to."""
        own = self.evaluation.block if self.evaluation else None
        return own or f"{self.data.registration}/validation"
