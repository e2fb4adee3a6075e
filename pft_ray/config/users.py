"""What a job whose unit is the user has to declare, and which way it is hidden."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pft_ray.errors import ConfigError

if TYPE_CHECKING:
    from pft_ray.config.sections import JobSpec

USER_KEYS = (
    "user_level",
    "max_records_per_user",
    "num_train_records",
    "user_contribution",
)


def check_users(job: JobSpec) -> None:
    """Refuses a job that says too much or too little about users.

    Raises:
        ConfigError: Names the key and what to change.
    """
    privacy = job.privacy
    if privacy.unit != "user":
        given = [key for key in USER_KEYS if getattr(privacy, key) is not None]
        if given:
            raise ConfigError(
                f"privacy.{given[0]} is given, but privacy.unit is {privacy.unit}.",
                "Set unit: user, or remove the key.",
            )
        return
    if privacy.user_level == "auto" and privacy.epsilon is None:
        raise ConfigError(
            "privacy.user_level is auto, but privacy.epsilon is missing: the two ways "
            "are compared at one epsilon.",
            "Give epsilon in place of noise_multiplier, or say uls or els.",
        )
    _check_columns(job)
    _check_numbers(job)


def _check_columns(job: JobSpec) -> None:
    data = job.data
    if data.user is None:
        raise ConfigError(
            "privacy.unit is user, but data.user names no column.",
            "Name the column whose values are the users.",
        )
    if data.split.field not in (None, data.user):
        raise ConfigError(
            f"data.split.field is {data.split.field!r}: a user could have records in "
            "both blocks.",
            f"Leave split.field out; blocks are then cut by {data.user!r}.",
        )
    if data.deduplicate == "exact":
        raise ConfigError(
            "data.deduplicate: exact drops a record because another user has it too: "
            "one user removed could change many others.",
            "Set deduplicate: none, or prepare the file and say beforehand.",
        )


def _check_numbers(job: JobSpec) -> None:
    privacy, users = job.privacy, job.data.num_train
    cap, records = privacy.max_records_per_user, privacy.num_train_records
    if cap is None or records is None:
        missing = "max_records_per_user" if cap is None else "num_train_records"
        raise ConfigError(
            f"privacy.unit is user, but privacy.{missing} is missing.",
            "Declare the cap, and how many training records there are after it; both "
            "are public.",
        )
    if not users <= records <= users * cap:
        raise ConfigError(
            f"privacy.num_train_records is {records} for {users} users of at most "
            f"{cap} records.",
            f"Declare {users} to {users * cap}; data.num_train counts users.",
        )
    if cap > job.training.max_micro_batch and privacy.user_level != "els":
        raise ConfigError(
            f"privacy.max_records_per_user {cap} is more than "
            f"training.max_micro_batch {job.training.max_micro_batch}: a user's "
            "records go through the model together.",
            "Raise max_micro_batch, or lower the cap.",
        )
    if privacy.user_contribution is not None and privacy.user_level == "els":
        raise ConfigError(
            "privacy.user_contribution is given with user_level els, which clips "
            "every record by itself.",
            "Remove user_contribution, or set user_level: uls.",
        )
