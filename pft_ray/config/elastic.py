"""Worker groups that grow and shrink, and public failure rates, as a job declares them.

None of it changes the guarantee: a resize keeps the noise, the batches and what is
charged as the plan has them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from pft_ray.config.base import Positive, Rate, Section, Text
from pft_ray.errors import ConfigError

if TYPE_CHECKING:
    from pft_ray.config.sections import JobSpec

_Workers = Annotated[int, Field(ge=1, le=4096)]
_Part = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
_Seconds = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class ElasticSection(Section):
    """Between which sizes a run moves, and what it weighs."""

    min_workers: _Workers = Field(1, description="Fewest workers.")
    max_workers: _Workers = Field(description="Most workers; noise is cut for these.")
    max_slowdown: _Part = Field(
        0.1, description="How much slower than the fastest size a cheaper one may be."
    )
    min_saving: _Part = Field(
        0.05, description="Part of time or money that a resize has to save."
    )
    min_interval_s: _Seconds = Field(60.0, description="Rest between two resizes.")
    resize_s: _Seconds = Field(30.0, description="Pause that a resize is taken to be.")
    node_start_s: _Seconds = Field(
        60.0, description="Time that a new node is taken to need until it can work."
    )
    park_timeout_s: Annotated[float, Field(ge=5, le=1e6)] = Field(
        60.0, description="How long workers wait at a boundary for their resize."
    )
    deadline_hours: Positive | None = Field(
        None, description="When the run should be done, from the start of the command."
    )
    max_price_per_hour: Positive | None = Field(
        None, description="Most that all nodes of the run may cost an hour."
    )
    prices: Text | None = Field(
        None, description="File of prices by node type and region."
    )
    policy: Text | None = Field(
        None, description="package.module:function that decides instead."
    )

    @model_validator(mode="after")
    def _order(self) -> ElasticSection:
        if self.min_workers > self.max_workers:
            raise ConfigError(
                f"cluster.elastic.min_workers is {self.min_workers}, max_workers "
                f"{self.max_workers}.",
                "Give a minimum that is not above the maximum.",
            )
        return self


class FaultsSection(Section):
    """Public failure rates, from which interval and reserve are chosen."""

    failures_per_node_hour: Annotated[float, Field(ge=0, le=1e3)] = Field(
        description="Nodes that fail, for each node and hour."
    )
    step_s: Positive = Field(description="Seconds of a step.")
    checkpoint_s: Positive = Field(1.0, description="Seconds of a checkpoint.")
    restart_s: _Seconds = Field(
        20.0, description="Seconds from a failure to the next step."
    )
    risk: Rate = Field(0.01, description="Chance that the reserve does not suffice.")
    max_reserve: Rate = Field(0.2, description="Most reserve, as a part of the steps.")


def check_elastic(job: JobSpec) -> None:
    """Refuses a job whose sizes cannot all carry the plan's noise and owners.

    Raises:
        ConfigError: Names the keys and what to change.
    """
    cluster = job.cluster
    elastic = cluster.elastic
    if elastic is None:
        _check_fixed(job)
        return
    if not elastic.min_workers <= cluster.workers <= elastic.max_workers:
        raise ConfigError(
            f"cluster.workers is {cluster.workers}, outside of cluster.elastic "
            f"{elastic.min_workers} to {elastic.max_workers}.",
            "It is the size to start with: give one between the two.",
        )
    if job.privacy.mode == "sequential" or cluster.tolerate_missing:
        raise ConfigError(
            "cluster.elastic is given with privacy.mode sequential, or with "
            "tolerate_missing.",
            "Independent workers and absent owners are counted in the plan: remove "
            "cluster.elastic, or use mode central or owners without absences.",
        )
    _check_owners_fit(job, elastic)


def _check_fixed(job: JobSpec) -> None:
    if job.cluster.file is not None:
        raise ConfigError(
            "cluster.file is given without cluster.elastic.",
            "Nodes come when the run asks for them: give cluster.elastic, with "
            "min_workers equal to max_workers for a fixed size.",
        )


def _check_owners_fit(job: JobSpec, elastic: ElasticSection) -> None:
    owners = job.privacy.owners
    if owners is not None and elastic.min_workers < len(owners.members):
        raise ConfigError(
            f"cluster.elastic.min_workers is {elastic.min_workers} for "
            f"{len(owners.members)} owners: two would share a worker.",
            f"Set min_workers to {len(owners.members)} or more.",
        )
