"""Owners with epsilons of their own, as a job file declares them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from pft_ray.config.base import Count, Delta, Epsilon, Name, Section, Text
from pft_ray.errors import ConfigError

if TYPE_CHECKING:
    from pft_ray.config.sections import JobSpec, PrivacySection


class OwnerSection(Section):
    """One owner: public, declared before data, independent of content."""

    name: Name = Field(description="Name; also its value in the owner column.")
    size: Count = Field(description="Declared number of its training units.")
    epsilon: Epsilon = Field(description="What each of its units may lose at T_max.")


class OwnersSection(Section):
    """Who owns which units, and how they get epsilons of their own."""

    method: Literal["sample", "scale"] = Field(
        "sample", description="Draw at rates of their own, or clip at norms."
    )
    field: Text = Field(description="Column that decides the owner of a record.")
    salt: Text | None = Field(
        None,
        description="Public salt: the column's value is hashed, and owners get parts "
        "in proportion to their sizes. Without it the value is the owner's name.",
    )
    colluding: Annotated[int, Field(ge=0, le=4096)] = Field(
        1, description="Owners that put together what they know, in the plan's table."
    )
    members: tuple[OwnerSection, ...] = Field(
        min_length=2, max_length=4096, description="The owners."
    )

    @model_validator(mode="after")
    def _names(self) -> OwnersSection:
        names = [owner.name for owner in self.members]
        if len(set(names)) != len(names):
            raise ConfigError(
                f"privacy.owners has two owners of one name: {', '.join(names)}.",
                "Give every owner a name of its own.",
            )
        return self

    def evaluation_epsilon(self) -> float:
        """The most a look may cost: a validation unit has an owner, too."""
        return min(owner.epsilon for owner in self.members)


def training_blocks(job: JobSpec) -> tuple[str, ...]:
    """Returns the blocks that training is charged to: with owners, one for each."""
    owners = job.privacy.owners
    if owners is None:
        return (job.training_block,)
    return tuple(f"{job.training_block}/{owner.name}" for owner in owners.members)


def check_mode(privacy: PrivacySection) -> None:
    """Refuses a privacy section whose mode and whose owners contradict one another.

    Raises:
        ConfigError: Names the keys and what to change.
    """
    if (privacy.mode == "owners") != (privacy.owners is not None):
        found = "missing" if privacy.owners is None else "given"
        raise ConfigError(
            f"privacy.mode is {privacy.mode} and privacy.owners is {found}.",
            "Set mode: owners and declare them in privacy.owners, or do neither.",
        )
    given = [k for k in ("epsilon", "noise_multiplier") if getattr(privacy, k)]
    if privacy.mode == "owners" and given:
        raise ConfigError(
            f"privacy.{given[0]} is given with mode owners.",
            "Remove it: every owner declares an epsilon of its own.",
        )


def check_sequential(job: JobSpec) -> None:
    """Refuses a job of independent workers that have not a noise share each.

    Raises:
        ConfigError: Names the key and what to change.
    """
    if job.privacy.mode != "sequential":
        return
    workers, shares = job.cluster.workers, job.training.noise_shares
    if workers < 2 or shares not in (None, workers):
        raise ConfigError(
            f"privacy.mode is sequential with {workers} workers and noise_shares "
            f"{shares}.",
            "Give two workers or more, and leave training.noise_shares out.",
        )
    moves = any(phase.clipping == "adaptive" for phase in job.training.phases)
    if job.privacy.unit != "record" or job.training.baseline or moves:
        raise ConfigError(
            "privacy.mode is sequential, with users, a baseline or adaptive clipping.",
            "Use mode: central for those.",
        )


def check_absences(job: JobSpec) -> None:
    """Refuses a job that tolerates absences which do not cost a share of noise.

    Raises:
        ConfigError: Names the key and what to change.
    """
    missing, workers = job.cluster.tolerate_missing, job.cluster.workers
    if not missing:
        return
    if job.privacy.mode == "central":
        raise ConfigError(
            f"cluster.tolerate_missing is {missing} with privacy.mode central.",
            "Leave it out: workers that are there share out all units and all noise, "
            "so no absence costs anything. It is for modes owners and sequential.",
        )
    shares = job.training.noise_shares
    if missing >= workers or shares not in (None, workers):
        raise ConfigError(
            f"cluster.tolerate_missing is {missing} with {workers} workers and "
            f"training.noise_shares {shares}.",
            "Tolerate fewer than all workers, and leave training.noise_shares out: "
            "each worker has one share.",
        )


def check_owners(job: JobSpec) -> None:
    """Refuses a job whose owners do not fit its data, unit or evaluation.

    Raises:
        ConfigError: Names the key and what to change.
    """
    owners = job.privacy.owners
    if owners is None:
        return
    total = sum(owner.size for owner in owners.members)
    if total != job.data.num_train:
        raise ConfigError(
            f"The owners declare {total} units, data.num_train {job.data.num_train}.",
            f"Set data.num_train: {total}, or correct the sizes.",
        )
    if job.privacy.unit == "user" and (
        owners.salt is None or owners.field != job.data.user
    ):
        raise ConfigError(
            f"privacy.unit is user, and owners are told by {owners.field!r}: a user "
            "could belong to two owners.",
            f"Set owners.field: {job.data.user} and give owners.salt.",
        )
    if owners.field in (job.data.text, job.data.messages):
        raise ConfigError(
            f"Column {owners.field!r} is both the content and the owner.",
            "Name another column as privacy.owners.field.",
        )
    if job.validation_block in training_blocks(job):
        raise ConfigError(
            f"Block {job.validation_block!r} is both an owner's and the validation's.",
            "Name another block as evaluation.block or privacy.block.",
        )
    if job.training.baseline:
        raise ConfigError(
            "training.baseline is true, with mode owners.",
            "Remove it: the baseline has no rates and clip norms of owners.",
        )
    _check_looks(job, owners)


def _check_looks(job: JobSpec, owners: OwnersSection) -> None:
    section = job.evaluation
    if section is None:
        return
    least = owners.evaluation_epsilon()
    delta: Delta | None = section.delta
    if (section.epsilon or 0) > least or (delta or 0) > job.privacy.delta:
        raise ConfigError(
            "The evaluation may cost a validation unit more than its owner allows.",
            f"Give evaluation.epsilon of at most {least:g}, the smallest of the "
            "owners', and no larger delta than theirs; or leave both out.",
        )
