"""What a run shows in a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flows import stages
from flows.parameters import Parameters
from flows.report import ClassShare, Report, format_measure
from tiling import BlockReport


def segment_with_progress(parameters: Parameters) -> Iterator[Report]:
    """Segments every source in turn, under a bar with blocks done, tiles a second and time left.

    Raises:
        InputError, ModelError, BlockError: as the stages do.
    """
    runs = stages.prepare(parameters)
    for run in runs:
        for warning in run.warnings:
            print(f"lmseg: note: {warning}", file=sys.stderr)
    with stages.hold(runs), stages.workers(parameters) as executor:
        for run in runs:
            blocks = stages.pending(run)
            total = run.store.grid.n_blocks
            with _bar() as bar:
                task = bar.add_task(run.name, total=total, completed=total - len(blocks), rate="")
                tiles = 0

                def count(report: BlockReport, bar: Progress = bar, task: TaskID = task) -> None:
                    nonlocal tiles
                    tiles += report.tiles
                    elapsed = bar.tasks[0].elapsed or 0
                    bar.update(task, advance=1, rate=f"{tiles / max(elapsed, 1e-9):.1f} tiles/s")

                stages.compute(run, blocks, executor, count)
            yield stages.finish(run)


def print_summary(summary: dict[str, Any]) -> None:
    """Prints the classes of a report's summary with areas or volumes, and every file written."""
    skipped = f", {summary['skipped']} skipped" if summary["skipped"] else ""
    print(f"\n{summary['source']}: {summary['tiles']} tiles in {summary['blocks']} blocks{skipped}")
    shares = [ClassShare(**c) for c in summary["classes"]]
    width = max(len(c.name) for c in shares)
    for c in shares:
        print(f"  {c.name:<{width}}  {c.pixels:>12}  {format_measure(c)}")
    if summary["nodata"]:
        print(f"  {'no data':<{width}}  {summary['nodata']:>12}")
    for warning in summary["warnings"]:
        print(f"  note: {warning}")
    for file in summary["files"]:
        print(f"  {file}")


_HELD = {
    "network": "network",
    "wait": "reading and decoding",
    "move": "moving to the device",
    "blend": "blending",
    "hold": "encoding and writing",
}


def print_profile(summary: dict[str, Any]) -> None:
    """Prints what the device's time went to, and the seconds of every stage."""
    shares = summary["device"]
    print("  device: " + ", ".join(f"{_HELD[step]} {shares[step]:.1%}" for step in _HELD if shares))
    print("  seconds: " + ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in summary["seconds"].items()))


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("blocks"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
