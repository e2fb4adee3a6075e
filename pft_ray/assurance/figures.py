"""Charts of a report as inline SVG: no script, no address, colours from the page.

Matplotlib draws with stand-in colours that are then replaced by the page's CSS
variables, so that one drawing serves light and dark pages. It comes with the extra
``train`` and is imported when the first chart is drawn.
"""

from __future__ import annotations

import io
import re
import warnings
from html import escape
from typing import TYPE_CHECKING, Any

from pft_ray.assurance.markup import Markup
from pft_ray.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Stand-in colours; each becomes a CSS variable of the page.
_COLOURS = {
    "ink": "#010203",
    "muted": "#040506",
    "line": "#070809",
    "private": "#0a0b0c",
    "baseline": "#0d0e0f",
    "others": "#101112",
    "left": "#131415",
}
_WIDTH_IN = 4.3
_POINTS = 10.5
_MAX_TICKS = 5
_SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": _POINTS,
    "text.color": _COLOURS["ink"],
    "axes.edgecolor": _COLOURS["line"],
    "axes.labelcolor": _COLOURS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _COLOURS["line"],
    "grid.linewidth": 0.5,
    "xtick.color": _COLOURS["line"],
    "ytick.color": _COLOURS["line"],
    "xtick.labelcolor": _COLOURS["muted"],
    "ytick.labelcolor": _COLOURS["muted"],
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
}


def utility_svg(
    name: str,
    points: Sequence[tuple[str, dict[str, Any]]],
    *,
    percent: bool,
    axis: str,
    description: str,
) -> Markup:
    """Draws one metric at each look: private with its interval, and what it is between.

    Args:
        name: Metric as the reader knows it.
        points: (label of the look, result) in order.
        percent: Show values as percent.
        axis: What the labels count, or empty when they say it themselves.
        description: The chart in words, for readers who do not see it.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        places = range(len(points))
        private = [result["private"] for _, result in points]
        bars = [
            [max(0.0, r["private"] - r["interval"][0]) for _, r in points],
            [max(0.0, r["interval"][1] - r["private"]) for _, r in points],
        ]
        axes.errorbar(
            places,
            private,
            yerr=bars,
            fmt="o-",
            color=_COLOURS["private"],
            capsize=5,
            markersize=6,
            linewidth=1.2,
            label="private, interval",
        )
        _series(axes, points, "non_private", "^", "baseline", "without privacy")
        _series(axes, points, "trivial", "D", "muted", "trivial guess")
        _label_looks(axes, [label for label, _ in points])
        axes.margins(x=0.2 if len(points) < 4 else 0.06, y=0.12)
        if percent:
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
        axes.set_xlabel(axis)
        axes.set_title(name, loc="left", fontsize=_POINTS + 1)
        handles, words = axes.get_legend_handles_labels()
        figure.legend(
            handles[-1:] + handles[:-1],
            words[-1:] + words[:-1],
            loc="outside lower center",
            ncols=3,
            columnspacing=0.9,
            handletextpad=0.3,
            handlelength=1.5,
            borderpad=0.1,
        )

    return _svg(draw, 2.9, f"utility-{_slug(name)}", name, description)


def budget_svg(
    blocks: Sequence[tuple[str, float, float, float]], description: str
) -> Markup:
    """Draws what runs took of each block's epsilon, as one bar a block.

    Args:
        blocks: (name, epsilon of other runs, of this run, left) of each block.
        description: The chart in words.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        names = ("other runs", "this run", "left")
        colours = ("others", "private", "left")
        for row, (name, *parts) in enumerate(blocks):
            start = 0.0
            for part, label, colour in zip(parts, names, colours, strict=True):
                axes.barh(
                    row,
                    max(0.0, part),
                    left=start,
                    height=0.42,
                    color=_COLOURS[colour],
                    edgecolor=_COLOURS["muted"],
                    linewidth=0.6,
                    label=label if row == 0 else None,
                )
                start += max(0.0, part)
            axes.text(0, row - 0.3, _shorten(name, 40), va="bottom", ha="left")
        axes.set_ylim(len(blocks) - 0.6, -0.75)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False)
        axes.set_xlabel("epsilon")
        figure.legend(
            loc="outside lower center", ncols=3, columnspacing=1.2, handlelength=1.4
        )

    height = 1.0 + 0.65 * len(blocks)
    return _svg(draw, height, "budget", "Budget", description)


def curve_svg(
    curve: Sequence[tuple[int, float]],
    num_steps: int,
    num_steps_max: int,
    description: str,
) -> Markup:
    """Draws epsilon over steps with T and T_max marked; computed before training.

    Args:
        curve: (steps, epsilon) pairs in rising order.
        num_steps: T.
        num_steps_max: T_max.
        description: The chart in words.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        steps, epsilons = zip(*curve, strict=True)
        axes.plot(
            steps,
            epsilons,
            "o-",
            color=_COLOURS["private"],
            markersize=3,
            linewidth=1.2,
        )
        top = max(epsilons) * 1.22
        axes.set_ylim(0, top)
        axes.set_xlim(0, num_steps_max * 1.26)
        marks = [(num_steps_max, f"T_max = {num_steps_max}", "left")]
        if num_steps != num_steps_max:
            marks.append((num_steps, f"T = {num_steps}", "right"))
        for step, label, side in marks:
            axes.axvline(step, color=_COLOURS["muted"], linewidth=1, linestyle="--")
            axes.annotate(
                label,
                (step, top),
                xytext=(-4 if side == "right" else 4, -2),
                textcoords="offset points",
                ha=side,
                va="top",
            )
        axes.set_xlabel("steps")
        axes.set_ylabel("epsilon")

    return _svg(draw, 2.5, "curve", "Epsilon over steps", description)


def _series(
    axes: Any,
    points: Sequence[tuple[str, dict[str, Any]]],
    key: str,
    marker: str,
    colour: str,
    label: str,
) -> None:
    """Adds the looks that have a value under ``key``, as open markers."""
    found = [(x, r[key]) for x, (_, r) in enumerate(points) if r.get(key) is not None]
    if found:
        axes.plot(
            *zip(*found, strict=True),
            marker,
            color=_COLOURS[colour],
            markerfacecolor="none",
            markersize=9,
            markeredgewidth=1.5,
            zorder=4,
            label=label,
        )


def _label_looks(axes: Any, labels: list[str]) -> None:
    every = -(-len(labels) // _MAX_TICKS)
    places = list(range(len(labels) - 1, -1, -every))[::-1]
    axes.set_xticks(places, [labels[place] for place in places])


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"


def _svg(
    draw: Callable[[Any], None],
    height_in: float,
    name: str,
    title: str,
    description: str,
) -> Markup:
    """Returns a drawing as one SVG element that names itself and fits its box."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError(
            "The report's page needs matplotlib.",
            "Install it: pip install 'pft-ray[train]'.",
        ) from None
    settings = {**_SETTINGS, "svg.hashsalt": name}
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return Markup(_inline(buffer.getvalue(), name, title, description))


def _inline(svg: str, name: str, title: str, description: str) -> str:
    """Turns a stand-alone SVG file into an element of a page.

    Drops its header, metadata, style sheet and addresses, makes its ids unique in
    the page, replaces the stand-in colours and adds a title and a description.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="([^"]+)"', rf' id="{name}-\1"', svg)
    svg = re.sub(r'xlink:href="#', f'href="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r"font-family: [^;\"]*; ", "", svg)
    for variable, colour in _COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    box = re.search(r'viewBox="([^"]+)"', svg)
    assert box is not None
    opening = (
        f'<svg role="img" viewBox="{box.group(1)}" '
        f'aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(description)}</desc>'
    )
    return opening + svg[svg.index(">") + 1 :].strip()
