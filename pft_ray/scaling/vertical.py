"""More speed from the machines that are there: threads, micro-batch, checkpointing.

Where no worker can be added, one may still be made faster. A profile says how long a
record takes and how much memory a worker needs at each setting, and the plan is the
fastest setting that fits. All three say how the same sums are computed: what is
sampled, clipped, noised and charged stays as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pft_ray.errors import InputError, PlacementError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_GIB = 1 << 30
TOLERANCE = 0.03
"""Settings at most this much slower than the fastest count as equally fast."""


@dataclass(frozen=True)
class Setting:
    """How a worker computes its records.

    Attributes:
        threads: Threads, and so CPUs, of a worker.
        micro_batch: Records that run through the model together at most.
        gradient_checkpointing: Whether layers run again instead of being remembered.
    """

    threads: int
    micro_batch: int
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("threads", "micro_batch"):
            value = getattr(self, name)
            if value < 1:
                raise InputError(f"{name} is {value}.", "Give an integer >= 1.")

    def __str__(self) -> str:
        again = ", gradient checkpointing" if self.gradient_checkpointing else ""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{threads}, micro-batch {self.micro_batch}{again}"


@dataclass(frozen=True)
class Measurement:
    """What one setting takes.

    Attributes:
        setting: The setting.
        seconds_per_record: Forward, backward and clipping of a made-up record.
        peak_bytes: Largest size of a worker; None when the system does not tell.
    """

    setting: Setting
    seconds_per_record: float
    peak_bytes: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds_per_record) and self.seconds_per_record > 0):
            raise InputError(
                f"A record takes {self.seconds_per_record!r} s.",
                "Give a finite time above 0.",
            )
        if self.peak_bytes is not None and self.peak_bytes < 0:
            raise InputError(
                f"A worker takes {self.peak_bytes} bytes.", "Give at least 0."
            )

    def fits(self, cpus: int, memory_limit_bytes: int | None) -> bool:
        """Returns whether a worker of so many CPUs and bytes can use the setting.

        A peak that is not known does not fit below a limit.
        """
        if self.setting.threads > cpus:
            return False
        if memory_limit_bytes is None:
            return True
        return self.peak_bytes is not None and self.peak_bytes <= memory_limit_bytes


@dataclass(frozen=True)
class Profile:
    """What was measured on a machine, for one phase or for a whole job.

    Attributes:
        measurements: Of distinct settings.
        current: The job's own setting; it may be too large to have been measured.
    """

    measurements: tuple[Measurement, ...]
    current: Setting

    def __post_init__(self) -> None:
        settings = [measurement.setting for measurement in self.measurements]
        if not settings or len(set(settings)) != len(settings):
            found = (
                "A setting was measured twice."
                if settings
                else ("No setting was measured.")
            )
            raise InputError(found, "Measure at least one setting, and each once.")

    def at(self, setting: Setting) -> Measurement | None:
        """Returns what ``setting`` takes, or None when it was not measured."""
        found = (m for m in self.measurements if m.setting == setting)
        return next(found, None)


@dataclass(frozen=True)
class VerticalPlan:
    """The setting to use, and what is to be expected of it.

    Attributes:
        threads: Threads, and so CPUs, of a worker.
        max_micro_batch: Records that run through the model together at most.
        gradient_checkpointing: Whether layers run again.
        speedup: Time of a record at the job's own setting over that at this one; None
            when the job's own was not measured.
        peak_bytes: Largest size of a worker, when it is known.
        reason: Why this one, in words.
    """

    threads: int
    max_micro_batch: int
    gradient_checkpointing: bool
    speedup: float | None
    peak_bytes: int | None
    reason: str

    @property
    def setting(self) -> Setting:
        """The same as a setting."""
        return Setting(self.threads, self.max_micro_batch, self.gradient_checkpointing)


def merge_phases(phases: Sequence[tuple[float, Profile]]) -> Profile:
    """Returns the profile of a job, whose phases all run at one setting.

    Args:
        phases: (steps, profile) of each phase, for one and the same current setting.

    Returns:
        The settings that every phase was measured at, with the mean time of a record
        over the steps, and the largest peak.

    Raises:
        InputError: No setting was measured in all phases.
    """
    whole = sum(steps for steps, _ in phases)
    merged = []
    for setting in [m.setting for m in phases[0][1].measurements]:
        parts = [(steps, profile.at(setting)) for steps, profile in phases]
        found = [(steps, part) for steps, part in parts if part is not None]
        if len(found) < len(phases):
            continue
        mean_s = sum(steps * part.seconds_per_record for steps, part in found) / whole
        merged.append(Measurement(setting, mean_s, _largest(m for _, m in found)))
    return Profile(tuple(merged), phases[0][1].current)


def plan_vertical(
    profile: Profile, cpus: int, memory_limit_bytes: int | None = None
) -> VerticalPlan:
    """Chooses the fastest setting that fits; among equally fast ones the simplest.

    Simpler is: fewer threads, no checkpointing, the micro-batch that the job has, a
    smaller micro-batch. Within 3 % of the fastest counts as equally fast. Checkpointing
    is chosen only where the setting does not fit without it.

    Args:
        profile: What was measured.
        cpus: CPUs that a worker may have.
        memory_limit_bytes: Largest size of a worker; None for no limit.

    Returns:
        The plan. By the profile it fits, and it is not slower than the job's own
        setting where that one fits.

    Raises:
        PlacementError: No setting fits; says which one needs least, and how much.
    """
    if cpus < 1:
        raise InputError(f"A worker has {cpus} CPUs.", "Give an integer >= 1.")
    fitting = [m for m in profile.measurements if m.fits(cpus, memory_limit_bytes)]
    if not fitting:
        raise _nothing_fits(profile, cpus, memory_limit_bytes)
    fitting = _without_needless_checkpointing(fitting, profile.current)
    fastest = min(fitting, key=lambda m: m.seconds_per_record)
    current = profile.at(profile.current)
    limit_s = (1 + TOLERANCE) * fastest.seconds_per_record
    if current is not None and current in fitting:
        limit_s = min(limit_s, current.seconds_per_record)
    near = [m for m in fitting if m.seconds_per_record <= limit_s]
    chosen = min(near, key=lambda m: _complexity(m.setting, profile.current))
    return VerticalPlan(
        threads=chosen.setting.threads,
        max_micro_batch=chosen.setting.micro_batch,
        gradient_checkpointing=chosen.setting.gradient_checkpointing,
        speedup=(
            current.seconds_per_record / chosen.seconds_per_record if current else None
        ),
        peak_bytes=chosen.peak_bytes,
        reason=_reason(chosen, fastest, profile, current_fits=current in fitting),
    )


def _without_needless_checkpointing(
    fitting: list[Measurement], current: Setting
) -> list[Measurement]:
    """Leaves out settings that run layers again although they fit without it.

    Running a layer again takes time and gives nothing else than memory: where it was
    measured as faster, the machine was busy with something else.
    """
    plain = {m.setting for m in fitting if not m.setting.gradient_checkpointing}
    return [
        m
        for m in fitting
        if m.setting == current
        or not m.setting.gradient_checkpointing
        or replace(m.setting, gradient_checkpointing=False) not in plain
    ]


def _complexity(setting: Setting, current: Setting) -> tuple[int, bool, bool, int]:
    other = setting.micro_batch != current.micro_batch
    again = setting.gradient_checkpointing
    return setting.threads, again, other, setting.micro_batch


def _reason(
    chosen: Measurement, fastest: Measurement, profile: Profile, *, current_fits: bool
) -> str:
    if chosen.setting == profile.current:
        return f"The job's own setting is within {TOLERANCE:.0%} of the fastest."
    words = f"The fastest of those that fit: {chosen.setting}."
    if chosen != fastest:
        words = (
            f"The simplest within {TOLERANCE:.0%} of the fastest that fits "
            f"({fastest.setting})."
        )
    if not current_fits:
        words += f" The job's own ({profile.current}) does not fit."
    return words


def _nothing_fits(
    profile: Profile, cpus: int, memory_limit_bytes: int | None
) -> PlacementError:
    fewest = min(m.setting.threads for m in profile.measurements)
    if memory_limit_bytes is None or fewest > cpus:
        return PlacementError(
            f"Every setting that was measured has at least {fewest} threads; a worker "
            f"has {cpus} CPUs.",
            "Measure with fewer threads, or give workers more CPUs.",
        )
    allowed = [m for m in profile.measurements if m.setting.threads <= cpus]
    known = [(m.peak_bytes, m.setting) for m in allowed if m.peak_bytes is not None]
    if not known:
        return PlacementError(
            "How much memory a worker takes is not known, so a limit cannot be kept.",
            "Leave the memory limit out, or measure on Linux.",
        )
    needed, setting = min(known, key=lambda pair: pair[0])
    return PlacementError(
        f"No setting fits into {memory_limit_bytes / _GIB:.2f} GiB: {setting} needs "
        f"{needed / _GIB:.2f} GiB.",
        "Give workers more memory, lower data.max_length, or take a smaller model.",
        {"needed_bytes": needed, "memory_limit_bytes": memory_limit_bytes},
    )


def _largest(measurements: Iterable[Measurement]) -> int | None:
    """Returns the largest peak; None when one of them is not known."""
    peaks = [measurement.peak_bytes for measurement in measurements]
    known = [peak for peak in peaks if peak is not None]
    return max(known) if len(known) == len(peaks) else None
