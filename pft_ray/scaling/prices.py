"""The price file of an elastic run: a small YAML list, read whole or refused.

Each row is ``{node_type, region, price_per_hour, spot}``; ``spot`` may be left out and
is then false. A kind that has no row has no known price, and nothing is guessed: the
policy adds no such node while others have a price.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from pft_ray.errors import ScalingError
from pft_ray.scaling.checks import check_amount, check_name

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_NEEDED = ("node_type", "region", "price_per_hour")
_KNOWN = (*_NEEDED, "spot")


@dataclass(frozen=True)
class PriceRow:
    """What one kind of node costs in one region.

    Attributes:
        node_type: The cluster's name for the kind.
        region: Where it stands.
        price_per_hour: Of the whole node, in the unit of money of the file.
        spot: Whether it is the price of nodes that may be taken away.
    """

    node_type: str
    region: str
    price_per_hour: float
    spot: bool = False

    def __post_init__(self) -> None:
        check_name(self.node_type, "node_type")
        check_name(self.region, "region")
        price = check_amount(self.price_per_hour, "price_per_hour")
        object.__setattr__(self, "price_per_hour", price)
        if not isinstance(self.spot, bool):
            raise ScalingError(f"spot is {self.spot!r}.", "Give true or false.")

    @property
    def key(self) -> tuple[str, str, bool]:
        """What the price is for."""
        return self.node_type, self.region, self.spot


class PriceTable:
    """Prices by kind of node, region and spot.

    Raises:
        ScalingError: Two rows are for the same.
    """

    def __init__(self, rows: Iterable[PriceRow]) -> None:
        self._prices: dict[tuple[str, str, bool], float] = {}
        for number, row in enumerate(rows, start=1):
            if row.key in self._prices:
                raise ScalingError(
                    f"Row {number} of the prices repeats {_words(row)}.",
                    "Keep one of the two rows.",
                    {"row": number},
                )
            self._prices[row.key] = row.price_per_hour

    def price(self, node_type: str, region: str, *, spot: bool = False) -> float | None:
        """Returns the price an hour, or None when the table has none."""
        return self._prices.get((node_type, region, spot))

    def __len__(self) -> int:
        return len(self._prices)


def load_prices(path: Path) -> PriceTable:
    """Reads a price file.

    Raises:
        ScalingError: It cannot be read, is no YAML list, or a row has a hole: a
            missing, negative or non-finite number, an unknown key, a second row for
            the same kind of node. The message names the row, counted from 1.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader subclass
    except (OSError, UnicodeDecodeError) as error:
        raise ScalingError(
            f"The price file {path.name} cannot be read ({type(error).__name__}).",
            "Check its path, its rights and that it is UTF-8.",
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" on line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "it does not parse"
        raise ScalingError(
            f"The price file {path.name} is no YAML{where}: {problem}.",
            "Correct that line.",
        ) from None
    if not isinstance(content, list) or not content:
        raise ScalingError(
            f"The price file {path.name} holds no list of rows.",
            "Write one row for each node type: "
            "- {node_type: small, region: eu-1, price_per_hour: 0.4}",
        )
    return PriceTable(_row(number, row) for number, row in enumerate(content, start=1))


def _row(number: int, row: Any) -> PriceRow:
    details = {"row": number}
    if not isinstance(row, dict):
        raise ScalingError(
            f"Row {number} of the prices is no mapping.",
            f"Give it the keys {', '.join(_NEEDED)}.",
            details,
        )
    unknown = [str(key) for key in row if key not in _KNOWN]
    if unknown:
        raise ScalingError(
            f"Row {number} of the prices has the unknown key {unknown[0]}.",
            f"Known keys are {', '.join(_KNOWN)}.",
            details,
        )
    missing = [key for key in _NEEDED if row.get(key) is None]
    if missing:
        raise ScalingError(
            f"Row {number} of the prices has no {missing[0]}.",
            f"Write {missing[0]} into it, or take the row out.",
            details,
        )
    try:
        return PriceRow(**row)
    except ScalingError as error:
        raise ScalingError(
            f"Row {number} of the prices: {error.message}", error.fix, details
        ) from None


def _words(row: PriceRow) -> str:
    spot = " spot" if row.spot else ""
    return f"{row.node_type}{spot} in {row.region}"


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [key.value for key, _ in node.value]
    for key, _ in node.value:
        if keys.count(key.value) > 1:
            raise yaml.constructor.ConstructorError(
                problem=f"the key {key.value!r} is given twice",
                problem_mark=key.start_mark,
            )
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
