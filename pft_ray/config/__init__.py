"""The job file: one YAML document, read once, frozen, and turned into a plan."""

from pft_ray.config.build import BuiltJob, build_job, build_plan
from pft_ray.config.load import job_schema, load_job, read_job
from pft_ray.config.lora import LoraSection
from pft_ray.config.owners import OwnerSection, OwnersSection
from pft_ray.config.quantile import QuantileSection
from pft_ray.config.sections import (
    ClusterSection,
    DataSection,
    EvaluationSection,
    JobSpec,
    LedgerSection,
    ModelSection,
    PhaseSection,
    PrivacySection,
    SplitSection,
    TrainingSection,
)

__all__ = [
    "BuiltJob",
    "ClusterSection",
    "DataSection",
    "EvaluationSection",
    "JobSpec",
    "LedgerSection",
    "LoraSection",
    "ModelSection",
    "OwnerSection",
    "OwnersSection",
    "PhaseSection",
    "PrivacySection",
    "QuantileSection",
    "SplitSection",
    "TrainingSection",
    "build_job",
    "build_plan",
    "job_schema",
    "load_job",
    "read_job",
]
