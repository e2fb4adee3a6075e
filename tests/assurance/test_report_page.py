"""report.html: complete in itself, escaped, accessible, and true to the report."""

from __future__ import annotations

import dataclasses
import re
import sys
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pft_ray.accounting.plan import Phase
from pft_ray.assurance.figures import budget_svg
from pft_ray.assurance.markup import tag
from pft_ray.assurance.page_style import STYLE
from pft_ray.assurance.report import Look, build_report
from pft_ray.assurance.report_html import render_html
from pft_ray.errors import MissingExtraError
from tests.assurance.report_cases import (
    baseline_facts,
    make_blocks,
    make_facts,
    make_plan,
    result,
)

VOID = {"meta", "br", "hr"}
HOSTILE = "</svg></title><script>alert(1)</script><!-- \"'&$\\frac{x}$ -->"


class Page(HTMLParser):
    """The elements of a page in order, and its text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" not in self._open:
            self.text.append(data)

    @property
    def tags(self) -> list[str]:
        return [tag for tag, _ in self.elements]

    def attributes(self, name: str) -> list[str]:
        return [a[name] or "" for _, a in self.elements if name in a]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def render(facts):
    return render_html(build_report(facts), facts)


@pytest.fixture(scope="module")
def demonstration():
    return render(baseline_facts())


@pytest.fixture(scope="module")
def page(demonstration):
    return Page(demonstration)


def test_page_asks_for_nothing_and_runs_nothing(demonstration, page):
    assert "://" not in demonstration
    assert "@import" not in demonstration
    assert not {"script", "link", "img", "iframe", "object", "a"} & set(page.tags)
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert "src" not in attributes
    targets = page.attributes("href") + page.attributes("xlink:href")
    assert targets
    assert all(target.startswith("#") for target in targets)
    policy = [a for a in page.attributes("content") if "default-src 'none'" in a]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_ids_are_unique_and_every_reference_has_its_target(demonstration, page):
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    named = [
        name for names in page.attributes("aria-labelledby") for name in names.split()
    ]
    linked = [target[1:] for target in page.attributes("href")]
    clipped = re.findall(r"url\(#([^)]+)\)", demonstration)
    assert len(named) == 2 * page.tags.count("svg")
    assert clipped
    assert set(named + linked + clipped) <= set(ids)


def test_page_is_accessible(page):
    elements = page.elements
    assert ("html", {"lang": "en"}) in elements
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in [
        a for t, a in elements if t == "meta"
    ]
    headings = [t for t in page.tags if re.fullmatch(r"h[1-6]", t)]
    assert headings[0] == "h1"
    assert set(headings[1:]) == {"h2"}
    assert page.tags.count("main") == 1
    assert page.tags.count("table") == page.tags.count("caption")
    svgs = [a for t, a in elements if t == "svg"]
    assert len(svgs) == 3
    assert all(a["role"] == "img" and "width" not in a for a in svgs)
    scrolling = [a for _, a in elements if a.get("class") == "scroll"]
    assert len(scrolling) == page.tags.count("table")
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in scrolling)


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [
        p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_both_palettes_have_the_contrast_that_reading_needs():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    light, dark = STYLE.split("@media", 1)
    assert dark.startswith(" (prefers-color-scheme: dark)")
    for part in (light, dark):
        palette = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", part))
        for ground in ("page", "panel"):
            for colour in ("ink", "muted", "private", "baseline"):
                assert contrast(palette[colour], palette[ground]) >= 4.5, colour
        assert contrast(palette["others"], palette["page"]) >= 3
        assert contrast(palette["muted"], palette["left"]) >= 3


def test_drawings_take_every_colour_from_the_page(demonstration):
    drawings = re.findall(r"<svg.*?</svg>", demonstration, re.DOTALL)
    for drawing in drawings:
        assert not re.search(r"(fill|stroke): #", drawing)
        used = set(re.findall(r"var\(--(\w+)\)", drawing))
        assert used
        assert used <= set(re.findall(r"--(\w+):", STYLE))
    assert not any(re.search(r"font-family", drawing) for drawing in drawings)


def test_first_screen_has_the_guarantee_and_the_results(demonstration):
    facts = baseline_facts()
    report = build_report(facts)
    first = Page(
        demonstration[: demonstration.index("<h2>")] + "</section></main></body></html>"
    )
    assert report["guarantee"] in first.words
    for words in ("3.00", "1e-5", "one record", "Accuracy", "95.0\xa0%"):
        assert words in " ".join(first.text), words
    text = first.words.replace("\xa0", " ")
    assert "between 93.0 % and 97.0 %" in text
    assert "trivial guess 75.7 %, without privacy 97.9 %" in text
    assert "Demonstration" in text


def test_private_page_has_no_trace_of_a_baseline():
    text = Page(render(make_facts())).words
    assert "baseline" not in text
    assert "Demonstration" not in text


def test_page_tells_budget_plan_and_how_to_verify(page):
    for words in (
        "pft budget verify",
        "ab12" * 16,
        "paid steps T_max 70",
        "fault reserve F 10",
        "noise multiplier σ 1.7325",
        "sample rate q 0.123373",
        "mail/train training 3.000, 1e-5 9 18 30, 1e-4",
        "For information",
        "T_max = 70",
        "The pre-training data of the public base model.",
    ):
        assert words in page.words, words


def names_facts(name: str):
    """Facts whose every free text is ``name``."""
    plan = make_plan(
        phases=(Phase(name, 40, name, 1.0), Phase(name, 20, name, 0.1)),
    )
    blocks = tuple(
        dataclasses.replace(line, name=f"{name} {line.role}")
        for line in make_blocks(plan)
    )
    return make_facts(
        plan=plan,
        blocks=blocks,
        training_block=f"{name} training",
        run_id=name,
        job_name=name,
        model=name,
        registration=name,
        reservation_root=name,
        looks=(Look(60, name, [result(name)]),),
    )


@pytest.fixture(scope="module")
def harmless():
    return Page(render(names_facts("name"))).tags


def test_hostile_names_stay_text(harmless):
    page = Page(render(names_facts(HOSTILE)))
    assert page.tags == harmless
    assert page.words.count("<script>alert(1)</script>") >= 8


@settings(max_examples=10, deadline=None)
@given(
    st.text(st.sampled_from("<>&\"'/=!-$\\{}^_%;#`\u202e éx"), min_size=1, max_size=24)
)
def test_no_name_adds_an_element(harmless, name):
    assert Page(render(names_facts(name))).tags == harmless


def test_page_is_the_same_when_made_again(demonstration):
    assert render(baseline_facts()) == demonstration


@pytest.mark.parametrize("number", [0, 1, 12])
def test_any_number_of_looks_is_drawn(number):
    looks = tuple(
        Look(5 * i, "head", [result(private=0.5 + i / 50, interval=[0.4, 0.9])])
        for i in range(1, number + 1)
    )
    source = render(make_facts(looks=looks))
    page = Page(source)
    assert page.tags.count("svg") == (3 if number else 2)
    assert ("No result was released" in page.words) == (number == 0)
    for look in looks:
        assert f"step {look.step}" in page.words


def test_bars_are_as_long_as_the_budget_they_stand_for():
    drawing = budget_svg([("mail/train", 9.0, 3.0, 18.0)], "words")
    bars = {}
    for path, colour in re.findall(
        r'<path d="([^"]+)"[^>]*style="fill: var\(--(\w+)\); stroke: var\(--muted\)',
        drawing,
    ):
        places = [float(x) for x in re.findall(r"[ML] ([\d.]+) ", path)]
        bars.setdefault(colour, (min(places), max(places)))  # the legend comes later
    others, this, left = (bars[name] for name in ("others", "private", "left"))
    unit = this[1] - this[0]
    assert others[1] - others[0] == pytest.approx(3 * unit, rel=1e-3)
    assert left[1] - left[0] == pytest.approx(6 * unit, rel=1e-3)
    assert (this[0], left[0]) == pytest.approx((others[1], this[1]))


def test_markup_escapes_text_and_attributes_but_not_itself():
    inner = tag("b", "<&>")
    assert inner == "<b>&lt;&amp;&gt;</b>"
    assert tag("p", inner, aria_label='"x" & <y>', class_="z") == (
        '<p aria-label="&quot;x&quot; &amp; &lt;y&gt;" class="z">'
        "<b>&lt;&amp;&gt;</b></p>"
    )
    assert tag("br") == "<br>"


def test_missing_matplotlib_names_the_extra(monkeypatch):
    facts = make_facts()
    report = build_report(facts)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pft-ray\[train\]'"):
        render_html(report, facts)
