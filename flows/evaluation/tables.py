"""The figures of an evaluation as tables, for a terminal and for Prefect's pages."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from flows.evaluation.scores import Evaluation, EvaluationParameters, evaluate


class Sheet(NamedTuple):
    """A table: what it is about, the heads of its columns, and rows of text; the last `sums` rows sum up."""

    title: str
    heads: list[str]
    rows: list[list[str]]
    sums: int


def evaluate_with_progress(parameters: EvaluationParameters) -> Evaluation:
    """Evaluates under a bar on standard error, where that is a terminal.

    Raises:
        InputError: as `flows.evaluation.scores.evaluate`.
    """
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("compared", total=1.0)
        return evaluate(parameters, lambda share: bar.advance(task, share))


def sheets(evaluation: Evaluation) -> list[Sheet]:
    """A table of the classes and, where there are several cases, one of these."""
    scores = evaluation.scores
    tables = [_class_sheet(evaluation)]
    if len(scores["cases"]) > 1:
        tables.insert(0, _case_sheet(evaluation))
    return tables


def notes(evaluation: Evaluation) -> list[str]:
    """What the figures rest on, a line each."""
    scores = evaluation.scores
    lines = [f"pixel accuracy {shown(scores['pixel_accuracy'])} of {scores['pixels']} pixels"]
    if scores["unpredicted"]:
        lines.append(f"{scores['unpredicted']} pixels have a truth and no prediction; no figure counts them")
    if evaluation.cases[0].outlines is not None:
        tolerance = "the tolerance of each case"
        if scores["tolerance"] is not None:
            tolerance = f"{scores['tolerance']:.4g} {scores['unit']}"
        edge = "count" if evaluation.ndim == 3 else "do not count"
        lines.append(f"outlines agree within {tolerance}; the image's own edges {edge}")
        missing = [
            f"{c['name']} ({c['infinite']})" if len(scores["cases"]) > 1 else c["name"]
            for c in scores["mean_over_cases"]["classes"]
            if c["infinite"]
        ]
        if missing:
            lines.append(f"HD95 is infinite, and left out of means, where one side lacks a class: {', '.join(missing)}")
        if any("too many" in (c["hd95_reason"] or "") for case in scores["cases"] for c in case["classes"]):
            lines.append("HD95 is left out where outlines are too long to hold")
    if scores["ece"] is not None:
        lines.append(
            f"calibration error {shown(scores['ece'])}; {shown(scores['ece_scaled'])} at the temperature "
            f"{scores['temperature']:.3g} that fits these pixels best"
        )
    return lines


def table(evaluation: Evaluation) -> str:
    """Tables and notes as text for a terminal of any width."""
    stream = io.StringIO()
    # Wide enough for every column: what is read by a program or in a log must not be cut.
    console = Console(file=stream, width=400, color_system=None)
    for sheet in sheets(evaluation):
        drawn = Table(box=SIMPLE_HEAD, pad_edge=False, title=sheet.title or None, title_justify="left")
        for i, head in enumerate(sheet.heads):
            drawn.add_column(head, justify="right" if i else "left", no_wrap=True)
        for number, row in enumerate(sheet.rows):
            drawn.add_row(*map(escape, row), end_section=number == len(sheet.rows) - sheet.sums - 1)
        console.print(drawn)
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    return "\n".join([*(line for line in lines if line), *notes(evaluation)])


def markdown(evaluation: Evaluation) -> str:
    """Tables and notes for Prefect's pages."""
    lines = []
    for sheet in sheets(evaluation):
        lines += [f"## {sheet.title or 'Scores'}", "", _row(sheet.heads)]
        lines += [_row(["---", *["---:"] * (len(sheet.heads) - 1)]), *map(_row, sheet.rows), ""]
    return "\n".join([*lines, *(f"- {note}" for note in notes(evaluation))]) + "\n"


def shown(value: float | None) -> str:
    """Four decimals, or a dash where there is no figure."""
    return "-" if value is None else f"{value:.4f}"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _distance(value: float | None, reason: str | None = None) -> str:
    if value is None:
        return "inf" if reason is not None and "infinite" in reason else "-"
    return f"{value:.4g}"


def _class_sheet(evaluation: Evaluation) -> Sheet:
    scores = evaluation.scores
    outlines = evaluation.cases[0].outlines is not None
    unit = scores["unit"] or "own unit"
    heads = ["class", "IoU", "Dice", *(["BF1", f"HD95 {unit}", "NSD"] if outlines else []), "pixels"]
    rows = []
    for c in scores["classes"]:
        distance = _distance(c["hd95"], c["hd95_reason"])
        surface = [shown(c["boundary_f1"]), distance, shown(c["nsd"])] if outlines else []
        rows.append([c["name"], shown(c["iou"]), shown(c["dice"]), *surface, str(c["pixels"])])
    rows.append(["mean", *_means(scores, outlines), str(scores["pixels"])])
    foreground = evaluation.ndim == 3 and any(c["value"] == 0 for c in scores["classes"])
    if foreground:
        background = next(c for c in scores["classes"] if c["value"] == 0)
        pixels = str(scores["pixels"] - background["pixels"])
        rows.append([f"mean without {background['name']}", *_means(scores["foreground"], outlines), pixels])
    title = "All cases together (HD95: mean over cases)" if len(scores["cases"]) > 1 else ""
    return Sheet(title, heads, rows, 2 if foreground else 1)


def _case_sheet(evaluation: Evaluation) -> Sheet:
    scores = evaluation.scores
    outlines = evaluation.cases[0].outlines is not None
    organs = evaluation.ndim == 3
    unit = scores["unit"] or "own unit"
    heads = ["case", "accuracy", "mIoU", "mDice", *(["BF1", f"HD95 {unit}", "NSD"] if outlines else [])]

    def row(name: str, figures: dict[str, Any]) -> list[str]:
        means = figures["foreground"] if organs else figures
        return [name, shown(figures["pixel_accuracy"]), *_means(means, outlines)]

    rows = [row(case["name"], case) for case in scores["cases"]]
    rows += [row("mean over cases", scores["mean_over_cases"]), row("standard deviation", scores["sd_over_cases"])]
    rows.append(row("all together", scores))
    return Sheet(f"{len(scores['cases'])} cases{', without class 0' if organs else ''}", heads, rows, 3)


def _means(figures: dict[str, Any], outlines: bool) -> list[str]:
    plain = [shown(figures["mean_iou"]), shown(figures["mean_dice"])]
    surface = [shown(figures["boundary_f1"]), _distance(figures["hd95"]), shown(figures["nsd"])]
    return [*plain, *surface] if outlines else plain
