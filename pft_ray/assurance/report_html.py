"""The report as one page: readable on a phone, in the dark and by a screen reader.

The page holds no script and asks for nothing from elsewhere; its content policy
forbids both. Every word from a job file or a ledger is escaped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pft_ray.assurance.figures import budget_svg, curve_svg, utility_svg
from pft_ray.assurance.filter_rows import accountant_rows, filter_row
from pft_ray.assurance.markup import Markup, table, tag
from pft_ray.assurance.owner_table import owner_table
from pft_ray.assurance.page_style import STYLE
from pft_ray.assurance.wording import FILTER_NOTE, round_up, unit_phrase

if TYPE_CHECKING:
    from pft_ray.accounting.plan import Plan
    from pft_ray.assurance.report import ReportFacts

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_NAMES = {
    "accuracy": "Accuracy",
    "auroc": "AUROC",
    "balanced_accuracy": "Balanced accuracy",
    "loss": "Loss",
    "mean_loss": "Mean loss",
    "perplexity": "Perplexity",
}
_PERCENT = {"accuracy", "balanced_accuracy"}
_SHARE = {"auroc"}
_NONE = "–"


def render_html(report: dict[str, Any], facts: ReportFacts) -> str:
    """Returns report.html, complete in itself.

    Args:
        report: What :func:`pft_ray.assurance.report.build_report` made of the facts.
        facts: The same facts; the page adds the plan, the budget and the curve.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    title = f"Privacy report: {facts.job_name}"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )
    main = tag(
        "main",
        _first_screen(report, title),
        _results(report),
        _budget(report, facts),
        _curve(facts),
        _plan(report, facts),
        _scope(report),
        _verify(report),
    )
    page = tag("html", head, tag("body", main), lang="en")
    return f"<!doctype html>\n{page}\n"


def _first_screen(report: dict[str, Any], title: str) -> Markup:
    """Returns the guarantee in a sentence, its numbers and the last look's results."""
    numbers = (
        ("ε (epsilon)", round_up(report["epsilon"])),
        ("δ (delta)", round_up(report["delta"])),
        ("unit", f"one {report['unit']}"),
    )
    tiles = [
        tag("div", tag("dt", name), tag("dd", value, class_="value"), class_="tile")
        for name, value in numbers
    ]
    parts: list[object] = [
        tag("h1", title),
        tag("p", report["guarantee"], class_="lead"),
        tag("dl", *tiles, class_="tiles small"),
    ]
    if report["utility_all"]:
        metrics = report["utility_all"][-1]["metrics"]
        parts.append(tag("dl", *map(_metric_tile, metrics), class_="tiles"))
    if report["guarantee_scope"] == "demonstration":
        text = f"Demonstration. {report['scope_note']}"
        parts.append(tag("p", text, class_="note"))
    return tag("section", *parts, aria_label="The guarantee")


def _metric_tile(result: dict[str, Any]) -> Markup:
    name = result["metric"]
    low, high = result["interval"]
    parts: list[object] = [
        tag("dt", _name(name)),
        tag("dd", _number(name, result["private"]), class_="value private"),
        tag("dd", f"between {_number(name, low)} and {_number(name, high)}"),
    ]
    others = [
        f"{word} {_number(name, result[key])}"
        for key, word in (
            ("trivial", "trivial guess"),
            ("non_private", "without privacy"),
        )
        if key in result
    ]
    if others:
        parts.append(tag("dd", ", ".join(others)))
    return tag("div", *parts, class_="tile")


def _results(report: dict[str, Any]) -> Markup:
    looks = report["utility_all"]
    heading = tag("h2", "What the model can do")
    if not looks:
        text = "No result was released: the plan has no look at validation data, or "
        text += "the run ended before one."
        return tag("section", heading, tag("p", text))
    names = list(dict.fromkeys(r["metric"] for look in looks for r in look["metrics"]))
    rows = [
        [
            f"{look['phase']}, step {look['step']}",
            _name(result["metric"]),
            _number(result["metric"], result["private"]),
            " to ".join(_number(result["metric"], v) for v in result["interval"]),
            _maybe(result, "trivial"),
            _maybe(result, "non_private"),
        ]
        for look in looks
        for result in look["metrics"]
    ]
    head = ["look", "metric", "private", "interval", "trivial guess", "without privacy"]
    return tag(
        "section",
        heading,
        *(_metric_figure(name, looks) for name in names),
        table("Results of each look", head, rows, wide=True),
        tag("p", report["interval_note"], class_="muted"),
    )


def _metric_figure(name: str, looks: list[dict[str, Any]]) -> Markup:
    """Returns the chart of one metric over the looks that have it."""
    points = [
        (look, result)
        for look in looks
        for result in look["metrics"]
        if result["metric"] == name
    ]
    words = "; ".join(
        f"step {look['step']}: private {_number(name, result['private'])}, "
        f"trivial guess {_maybe(result, 'trivial')}, "
        f"without privacy {_maybe(result, 'non_private')}"
        for look, result in points
    )
    few = len(points) <= 4
    labels = [
        f"step {look['step']}\n{look['phase'][:16]}" if few else f"{look['step']}"
        for look, _ in points
    ]
    drawing = utility_svg(
        _name(name),
        list(zip(labels, (result for _, result in points), strict=True)),
        percent=name in _PERCENT,
        axis="" if few else "steps",
        description=words,
    )
    caption = f"{_name(name)} at each look. The bar is the interval of the noise."
    return tag("figure", drawing, tag("figcaption", caption))


def _budget(report: dict[str, Any], facts: ReportFacts) -> Markup:
    bars, words, rows = [], [], []
    for line in facts.blocks:
        if line.mode == "filter":
            rows.append(filter_row(line))
            continue
        others = max(0.0, line.epsilon_reserved - line.run_epsilon)
        left = max(0.0, line.epsilon - line.epsilon_reserved)
        bars.append((f"{line.role}: {line.name}", others, line.run_epsilon, left))
        words.append(
            f"{line.name}: other runs {others:.4g}, this run {line.run_epsilon:.4g}, "
            f"left {left:.4g} of {line.epsilon:.4g}"
        )
        rows.append(
            [
                line.name,
                line.role if line.owner is None else f"{line.role}, {line.owner}",
                f"{round_up(line.run_epsilon, 4)}, {round_up(line.run_delta)}",
                f"{others:.4g}",
                f"{left:.4g}",
                f"{line.epsilon:.4g}, {round_up(line.delta)}",
            ]
        )
    head = ["block", "role", "this run (ε, δ)", "other runs (ε)", "left (ε)"]
    head.append("whole (ε, δ)")
    caption = (
        "Epsilon that runs had reserved of each block when this page was made. "
        "A run takes its whole envelope, however far it goes."
    )
    maxima = (
        f"The guarantee above, ε = {round_up(report['epsilon'])} and "
        f"δ = {round_up(report['delta'])}, is this run's alone. All runs on a block "
        "together stay within the block's budget."
    )
    figure = tag("p", FILTER_NOTE)
    if bars:
        drawing = budget_svg(bars, "; ".join(words))
        figure = tag("figure", drawing, tag("figcaption", caption))
    return tag(
        "section",
        tag("h2", "Budget"),
        figure,
        table("Blocks of this run", head, rows, wide=True),
        tag("p", maxima, class_="muted"),
    )


def _curve(facts: ReportFacts) -> Markup:
    if not facts.curve:
        return Markup()
    plan = facts.plan
    words = "; ".join(f"{steps} steps: {epsilon:.4g}" for steps, epsilon in facts.curve)
    caption = (
        "For information, computed from the plan before training. What holds for it is "
        f"the value at T_max = {plan.num_steps_max}, the same wherever a run ends: "
        f"T = {plan.num_steps} planned steps and {plan.fault_reserve} that pay for "
        "steps that have to be made again."
    )
    rows = [[steps, round_up(epsilon, 4)] for steps, epsilon in facts.curve]
    details = tag(
        "details",
        tag("summary", "The curve as a table"),
        table("Epsilon of the training block", ["steps", "epsilon"], rows),
    )
    return tag(
        "section",
        tag("h2", "Epsilon over steps"),
        tag(
            "figure",
            curve_svg(facts.curve, plan.num_steps, plan.num_steps_max, words),
            tag("figcaption", caption),
        ),
        details,
    )


def _shares(facts: ReportFacts) -> str:
    missing = facts.plan.tolerate_missing
    absent = f" ({missing} may be absent)" if missing else ""
    return f"{facts.workers}, {facts.plan.num_shares}{absent}"


def _expected(plan: Plan) -> str:
    drawn = "records" if plan.user and plan.user.kind == "els" else "units"
    return f"expected {drawn} a step"


def _user_rows(plan: Plan) -> list[list[object]]:
    """Rows about users; none when the unit is the record."""
    if plan.user is None:
        return []
    return [
        ["user level", plan.user.kind],
        ["records of a user at most", plan.user.max_records_per_user],
        ["declared training records", plan.user.num_records],
    ]


def _plan(report: dict[str, Any], facts: ReportFacts) -> Markup:
    plan = facts.plan
    accountants = report["epsilon_by_accountant"]
    target = report["target_epsilon"]
    rows: list[list[object]] = [
        ["run", report["run_id"]],
        ["base model", facts.model],
        ["registered data set", facts.registration],
        [
            "unit, relation",
            f"{unit_phrase(plan.unit, facts.user_column)}, add or remove one",
        ],
        ["list the relation is about", plan.relation_domain],
        ["declared training units n", plan.size],
        *_user_rows(plan),
        ["sample rate q", f"{plan.sample_rate:.6g}"],
        [_expected(plan), f"{plan.expected_batch_size:.6g}"],
        ["noise multiplier σ", f"{plan.noise_multiplier:.6g}"],
        ["planned steps T", plan.num_steps],
        ["fault reserve F", plan.fault_reserve],
        ["paid steps T_max", plan.num_steps_max],
        ["target ε", _NONE if target is None else f"{target:.6g}"],
        *accountant_rows(accountants),
        ["training δ", round_up(plan.delta)],
        ["workers, noise shares", _shares(facts)],
        *_evaluation_rows(facts),
        ["plan digest", report["plan_digest"]],
        ["pft_ray", report["pft_ray_version"]],
    ]
    return tag(
        "section",
        tag("h2", "Plan"),
        table("Fixed before any data was read", [], rows),
        table(
            "Phases",
            ["phase", "steps", "trained", "clip norm C", "clipping"],
            _phase_rows(facts),
            wide=True,
        ),
        *owner_table(report),
    )


def _phase_rows(facts: ReportFacts) -> list[list[object]]:
    rows: list[list[object]] = []
    for index, phase in enumerate(facts.plan.phases):
        clip_norm, clipping = f"{phase.clip_norm:.6g}", phase.clipping.replace("_", " ")
        if phase.quantile is not None:
            clip_norm += f" at first, {facts.last_clip_norms[index]:.6g} at last"
            clipping += f", {phase.quantile.target:.6g} quantile"
        rows.append([phase.name, phase.num_steps, phase.trainable, clip_norm, clipping])
    return rows


def _evaluation_rows(facts: ReportFacts) -> list[list[object]]:
    looks = facts.plan.evaluation
    if looks is None:
        return [["looks at validation data", "none"]]
    steps = ", ".join(str(step) for step in looks.looks)
    return [
        ["looks after steps", f"{steps}; {looks.num_spare_looks} spare"],
        ["declared validation units", looks.size],
        ["noise scale of a look", f"{looks.sigma:.6g}"],
        ["all looks: ε, δ at most", f"{looks.epsilon:.6g}, {round_up(looks.delta)}"],
    ]


def _scope(report: dict[str, Any]) -> Markup:
    return tag(
        "section",
        tag("h2", "What the guarantee is about"),
        tag("p", f"Scope: {report['guarantee_scope']}. {report['scope_note']}"),
        tag("p", report["relation_note"]),
        *([tag("p", report["unit_note"])] if "unit_note" in report else []),
        tag(
            "p",
            "ε and δ bound what the whole run tells of any unit, whichever block it "
            "is in: blocks that may hold the same unit are added up, disjoint ones "
            "are not.",
        ),
        tag("p", "It does not cover:"),
        tag("ul", *(tag("li", line) for line in report["not_covered"])),
    )


def _verify(report: dict[str, Any]) -> Markup:
    ledger = report["ledger"]
    text = (
        "Whoever holds the ledger can check this page: the command replays the ledger, "
        "computes each run's epsilon anew and looks for the reservation that the "
        "reports below RUNS name."
    )
    rows: list[list[object]] = [
        ["reservation number", ledger["sequence"]],
        ["root", ledger["root"]],
    ]
    return tag(
        "section",
        tag("h2", "How to verify"),
        tag("p", text),
        tag("pre", tag("code", "pft budget verify --runs RUNS")),
        table("Position in the ledger", [], rows),
    )


def _name(metric: str) -> str:
    return _NAMES.get(metric, metric)


def _number(metric: str, value: float) -> str:
    if metric in _PERCENT:
        return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"
    return f"{value:.3f}" if metric in _SHARE else f"{value:.4g}"


def _maybe(result: dict[str, Any], key: str) -> str:
    return _number(result["metric"], result[key]) if key in result else _NONE
