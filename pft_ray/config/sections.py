"""The sections of a job file as frozen pydantic models; unknown keys are refused.

Everything that has a shape or a constant (sizes, labels, lengths, norms) is declared
here and is public. Nothing is counted from private data.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=2.3e-308, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**40)]
NonNegative = Annotated[int, Field(ge=0, le=2**40)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,99}$")]


class Section(BaseModel):
    """Base of all sections: frozen, strict types, no unknown key."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False
    )


class SplitSection(Section):
    """How a unit is assigned to the training or the validation block."""

    field: str | None = Field(
        None, description="Column whose value is hashed; the unit's id when absent."
    )
    salt: str = Field("1", min_length=1, description="Public salt of the hash.")
    validation_fraction: float = Field(0.2, gt=0, lt=1)


class DataSection(Section):
    """What is read, what its columns mean, and how large it is declared to be."""

    path: str = Field(min_length=1, description="File or folder, from the job file.")
    registration: Name = Field(description="Name of the registered data set.")
    public: bool = Field(False, description="Fixed when the data set is registered.")
    format: Literal["auto", "parquet", "csv", "jsonl", "dataset"] = "auto"
    text: str | None = Field(None, description="Column of the text.")
    messages: str | None = Field(None, description="Column of chat messages.")
    label: str | None = None
    labels: tuple[str, ...] | None = Field(None, description="Declared classes.")
    id: str | None = Field(None, description="Column of unique record ids.")
    user: str | None = Field(None, description="Column that names the person.")
    split: SplitSection = SplitSection()
    num_train: Count = Field(description="Declared number n of training units.")
    num_validation: Count | None = None
    max_length: Annotated[int, Field(ge=2, le=131072)] = 128
    deduplicate: Literal["none", "exact", "beforehand"] = Field(
        "none",
        description="exact: equal texts once, across units. beforehand: the file was "
        "prepared across units. Both make the relation_domain 'prepared'.",
    )

    @model_validator(mode="after")
    def _columns(self) -> DataSection:
        if (self.text is None) == (self.messages is None):
            msg = "give exactly one of text and messages"
            raise ValueError(msg)
        if (self.label is None) != (self.labels is None):
            msg = "label and labels belong together: give both or neither"
            raise ValueError(msg)
        if self.labels is not None and len(set(self.labels)) < 2:
            msg = f"labels names {len(set(self.labels))} class; two or more are needed"
            raise ValueError(msg)
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            msg = "labels names a class twice"
            raise ValueError(msg)
        return self


class LoraSection(Section):
    """Low-rank adapters and where they go."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 8
    alpha: Positive = 16.0
    targets: tuple[str, ...] = Field(min_length=1)
    layers: tuple[NonNegative, ...] | None = None


class ModelSection(Section):
    """The public base model and its task."""

    path: str = Field(
        min_length=1,
        description="Folder, package:module/sub/folder, or hub:org/name@revision.",
    )
    task: Literal["classification", "causal_lm"] = "classification"
    pooling: Literal["mean", "cls", "last"] = "mean"
    lora: LoraSection | None = None


class PrivacySection(Section):
    """The guarantee that is asked for."""

    unit: Literal["record"] = "record"
    epsilon: Positive | None = None
    noise_multiplier: Positive | None = None
    delta: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 1e-5
    fault_reserve: NonNegative | None = Field(
        None, description="Extra steps that pay for faults; default from the plan."
    )
    block: Name | None = Field(None, description="Default: registration/train.")

    @model_validator(mode="after")
    def _one_of(self) -> PrivacySection:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            msg = "give exactly one of epsilon and noise_multiplier"
            raise ValueError(msg)
        return self


class PhaseSection(Section):
    """A stretch of steps with one trainable set, clip norm and learning rate."""

    name: Name
    steps: Count
    trainable: Literal["head", "adapter", "adapter+head", "all"]
    clip_norm: Positive
    learning_rate: Positive
    head_learning_rate: Positive | None = None
    warmup_steps: NonNegative = 0
    decay: Literal["constant", "linear", "cosine"] = "constant"


class TrainingSection(Section):
    """How the model is trained."""

    batch_size: Count | None = Field(None, description="Expected units a step, q*n.")
    sample_rate: Rate | None = None
    phases: tuple[PhaseSection, ...] = Field(min_length=1)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    seed: NonNegative = Field(0, description="Public seed of initial weights only.")
    max_micro_batch: Count = Field(64, description="Units a forward pass at most.")
    checkpoint_interval: Count | None = None
    grant_size: Count | None = None
    noise_shares: Count | None = Field(None, description="Default: one a worker.")
    baseline: bool = Field(
        False, description="Also train without privacy; public data sets only."
    )

    @model_validator(mode="after")
    def _one_of(self) -> TrainingSection:
        if (self.batch_size is None) == (self.sample_rate is None):
            msg = "give exactly one of batch_size and sample_rate"
            raise ValueError(msg)
        names = [phase.name for phase in self.phases]
        if len(set(names)) != len(names):
            msg = "two phases have the same name"
            raise ValueError(msg)
        return self


class EvaluationSection(Section):
    """The charged looks at the validation block."""

    looks: tuple[Count, ...] | None = Field(
        None, description="Step counts; default: the end of each phase."
    )
    epsilon: Positive | None = Field(None, description="Default: privacy.epsilon.")
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    spare_looks: NonNegative = 1
    num_bins: Annotated[int, Field(ge=2, le=200)] = 20
    loss_bound: Positive = 10.0
    block: Name | None = Field(None, description="Default: registration/validation.")


class ClusterSection(Section):
    """Workers and where they run; none of it changes the guarantee."""

    workers: Annotated[int, Field(ge=1, le=4096)] = 1
    cpus_per_worker: Positive = 1.0
    address: str | None = Field(None, description="Ray address; default: local.")
    max_failures: NonNegative = 3
    placement_timeout_s: Positive = 60.0


class LedgerSection(Section):
    """Where the durable ledger is."""

    url: str | None = Field(None, description="Default: $PFT_HOME/ledger.db.")


class JobSpec(Section):
    """A whole job file."""

    version: Literal[1] = 1
    name: Name
    data: DataSection
    model: ModelSection
    privacy: PrivacySection
    training: TrainingSection
    evaluation: EvaluationSection | None = EvaluationSection()
    cluster: ClusterSection = ClusterSection()
    ledger: LedgerSection = LedgerSection()
    output: str = Field("runs", description="Folder of run folders, from here.")

    @model_validator(mode="after")
    def _consistent(self) -> JobSpec:
        problem = _problem(self)
        if problem:
            raise ValueError(problem)
        return self

    @property
    def training_block(self) -> str:
        """Name of the block that training is charged to."""
        return self.privacy.block or f"{self.data.registration}/train"

    @property
    def validation_block(self) -> str:
        """Name of the block that evaluation is charged to."""
        own = self.evaluation.block if self.evaluation else None
        return own or f"{self.data.registration}/validation"


def _problem(job: JobSpec) -> str | None:
    """Returns what contradicts itself between two sections, or None."""
    if job.model.task == "classification" and job.data.labels is None:
        return "data.label and data.labels are needed for model.task classification"
    if job.model.task == "causal_lm" and job.data.labels is not None:
        return "data.labels makes no sense with model.task causal_lm; remove it"
    return _training_problem(job) or _size_problem(job)


def _training_problem(job: JobSpec) -> str | None:
    trained = {p for phase in job.training.phases for p in phase.trainable.split("+")}
    if "adapter" in trained and job.model.lora is None:
        return "a phase trains the adapter but model.lora is missing"
    if job.model.lora is not None and "adapter" not in trained:
        return "model.lora is given but no phase trains the adapter"
    if "all" in trained and len(trained) > 1:
        return "a phase that trains all cannot be mixed with head or adapter phases"
    if "head" in trained and job.model.task == "causal_lm":
        return "trainable 'head' needs model.task classification"
    return None


def _size_problem(job: JobSpec) -> str | None:
    if job.training.baseline and not job.data.public:
        return "training.baseline needs data.public: true"
    if job.evaluation is not None and job.data.num_validation is None:
        return (
            "data.num_validation is needed for the evaluation; "
            "declare it or set evaluation: null"
        )
    size = job.training.batch_size
    if size is not None and size > job.data.num_train:
        return (
            f"training.batch_size {size} is larger than data.num_train "
            f"{job.data.num_train}"
        )
    if job.cluster.workers > job.data.num_train:
        return (
            f"cluster.workers {job.cluster.workers} is more than the "
            f"{job.data.num_train} declared records"
        )
    return None
