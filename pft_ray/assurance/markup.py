"""HTML built so that text is escaped unless it is known to be HTML already."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_VOID = {"meta", "br", "hr"}


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: str) -> Markup:
    """Returns an element; children that are not :class:`Markup` are escaped.

    Args:
        name: Element name.
        *children: Contents in order.
        **attributes: Attributes; ``class_`` is class, ``aria_label`` is aria-label.
    """
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
    )
    if name in _VOID:
        return Markup(f"<{name}{pairs}>")
    return Markup(f"<{name}{pairs}>{join(children)}</{name}>")


def join(children: Iterable[object]) -> Markup:
    """Returns the children one after the other, escaped unless they are markup."""
    return Markup(
        "".join(
            child if isinstance(child, Markup) else escape(str(child))
            for child in children
        )
    )


def table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    wide: bool = False,
) -> Markup:
    """Returns a captioned table whose first cells head their rows.

    Args:
        caption: What the table shows; also the name of the box it scrolls in.
        head: Column heads; empty for a table of names and values.
        rows: Cells.
        wide: Keep cells on one line and let the box scroll.
    """
    parts: list[object] = [tag("caption", caption)]
    if head:
        cells = [tag("th", cell, scope="col") for cell in head]
        parts.append(tag("thead", tag("tr", *cells)))
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            *(tag("td", cell) for cell in row[1:]),
        )
        for row in rows
    ]
    parts.append(tag("tbody", *body))
    return tag(
        "div",
        tag("table", *parts, class_="wide" if wide else "facts"),
        class_="scroll",
        role="region",
        aria_label=caption,
        tabindex="0",
    )
