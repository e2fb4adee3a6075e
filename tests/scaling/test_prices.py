"""A price file is read whole, or refused with the row that is wrong."""

from __future__ import annotations

import pytest

from pft_ray.errors import ScalingError
from pft_ray.scaling.prices import PriceRow, PriceTable, load_prices

GOOD = """
- {node_type: small, region: eu-1, price_per_hour: 0.4}
- {node_type: small, region: eu-1, price_per_hour: 0.1, spot: true}
- {node_type: large, region: eu-2, price_per_hour: 2}
"""


def test_prices_by_kind_region_and_spot(tmp_path):
    table = load_prices(written(tmp_path, GOOD))
    assert len(table) == 3
    assert table.price("small", "eu-1") == 0.4
    assert table.price("small", "eu-1", spot=True) == 0.1
    assert table.price("large", "eu-2") == 2.0
    assert table.price("large", "eu-1") is None
    assert table.price("large", "eu-2", spot=True) is None


def row(text):
    return f"- {{node_type: a, region: r, price_per_hour: 1}}\n- {text}\n"


BAD = {
    "missing-number": (row("{node_type: b, region: r}"), "Row 2", "price_per_hour"),
    "empty-number": (
        row("{node_type: b, region: r, price_per_hour: }"),
        "Row 2",
        "price_per_hour",
    ),
    "not-a-number": (
        row("{node_type: b, region: r, price_per_hour: .nan}"),
        "Row 2",
        "number >= 0",
    ),
    "endless": (
        row("{node_type: b, region: r, price_per_hour: .inf}"),
        "Row 2",
        "number >= 0",
    ),
    "negative": (
        row("{node_type: b, region: r, price_per_hour: -1}"),
        "Row 2",
        "number >= 0",
    ),
    "a-word": (
        row("{node_type: b, region: r, price_per_hour: cheap}"),
        "Row 2",
        "as a number",
    ),
    "true": (
        row("{node_type: b, region: r, price_per_hour: true}"),
        "Row 2",
        "as a number",
    ),
    "no-region": (row("{node_type: b, price_per_hour: 1}"), "Row 2", "region"),
    "blank-region": (
        row("{node_type: b, region: '', price_per_hour: 1}"),
        "Row 2",
        "region",
    ),
    "unknown-key": (
        row("{node_type: b, region: r, price_per_hour: 1, zone: z}"),
        "zone",
        "Known keys",
    ),
    "spot-word": (
        row("{node_type: b, region: r, price_per_hour: 1, spot: maybe}"),
        "Row 2",
        "true or false",
    ),
    "twice": (
        row("{node_type: a, region: r, price_per_hour: 2}"),
        "Row 2",
        "one of the two",
    ),
    "key-twice": (
        row("{node_type: b, region: r, price_per_hour: 1, region: s}"),
        "given twice",
        "Correct",
    ),
    "no-mapping": (row("cheap"), "Row 2", "keys"),
    "empty": ("", "no list", "one row"),
    "a-mapping": ("small: 1\n", "no list", "one row"),
    "no-yaml": ("- {a: [\n", "no YAML", "Correct"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_hole_is_named(tmp_path, name):
    text, message, fix = BAD[name]
    with pytest.raises(ScalingError) as refusal:
        load_prices(written(tmp_path, text))
    assert message in refusal.value.message
    assert fix in refusal.value.fix


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ScalingError, match="cannot be read"):
        load_prices(tmp_path / "prices.yaml")
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ScalingError, match="cannot be read"):
        load_prices(path)


def test_a_table_made_by_hand_refuses_repeats_too():
    rows = [PriceRow("a", "r", 1.0), PriceRow("a", "r", 2.0, spot=True)]
    assert len(PriceTable(rows)) == 2
    with pytest.raises(ScalingError, match="Row 3"):
        PriceTable([*rows, PriceRow("a", "r", 9.0)])


def written(folder, text):
    path = folder / "prices.yaml"
    path.write_text(text, encoding="utf-8")
    return path
