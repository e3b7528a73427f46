"""The report of an evaluation: a folder with a page, its pictures and the figures, there when it is complete."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from html import escape
from importlib.metadata import version
from pathlib import Path

from flows.evaluation.charts import by_truth, confusion_chart, reliability_chart
from flows.evaluation.places import chosen, draw
from flows.evaluation.reliability import pooled
from flows.evaluation.scores import Evaluation, EvaluationParameters, unchanged
from flows.evaluation.tables import Sheet, notes, sheets
from tiling import InputError
from tiling.place import Content

PAGE = "index.html"
MANIFEST = "files.json"
_OURS = re.compile(r"index\.html|(files|scores)\.json|(confusion|reliability|(worst|best)-\d)\.png")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1320px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 } img { max-width: 100% }
th, td { padding: .2em .8em; text-align: right; border-bottom: 1px solid #e4e4e4; font-variant-numeric: tabular-nums }
th:first-child, td:first-child { text-align: left } tr.sum td { border-top: 1px solid #888; font-weight: 600 }
"""


def check_folder(parameters: EvaluationParameters) -> None:
    """Refuses a report's folder that holds anything but an earlier report, which would be replaced.

    Raises:
        InputError: naming the file in the way: one that is no part of a report, one that the report did not write (with
            `overwrite` it is replaced), or one of the images that are compared.
    """
    folder = parameters.report
    if folder is None or not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; choose a folder for the report")
    files = sorted(folder.iterdir())
    if foreign := [f.name for f in files if f.is_symlink() or not f.is_file() or not _OURS.fullmatch(f.name)]:
        raise InputError(f"{folder} holds {foreign[0]}, which is no part of a report; choose another folder")
    for name in (parameters.prediction, parameters.truth):
        if os.path.exists(name) and any(_is_within(file, name) for file in files):
            raise InputError(f"{name} lies in {folder}, and inputs are never replaced; choose another folder")
    known = _manifest(folder)
    # The manifest says nothing of itself, and is a report's where it makes sense.
    changed = [f.name for f in files if not (known if f.name == MANIFEST else known.get(f.name) == _digest(f))]
    if changed and not parameters.overwrite:
        raise InputError(
            f"{folder} holds {changed[0]}, which is not what a report wrote; choose another folder, or pass --overwrite"
        )


def write_report(evaluation: Evaluation, parameters: EvaluationParameters) -> Path:
    """Writes the page `index.html`, `scores.json` and pictures; replaces an earlier report.

    Raises:
        InputError: where the folder holds something else or cannot be written; nothing is left then.
        OutputError: where a run was written while it was drawn.
    """
    folder = parameters.report
    assert folder is not None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            with unchanged([scored.case for scored in evaluation.cases]):
                _write(evaluation, part, parameters.ignore)
            digests = {file.name: _digest(file) for file in sorted(part.iterdir())}
            (part / MANIFEST).write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")
            part.chmod(0o755)  # a temporary folder is its owner's alone
            check_folder(parameters)
            if folder.exists():
                # File by file: the folder goes only if nobody has put another one into it.
                for name in (*_manifest(folder), *digests, MANIFEST):
                    (folder / name).unlink(missing_ok=True)
                folder.rmdir()
            part.replace(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error}; choose another folder or free some space") from error
    return folder / PAGE


def _manifest(folder: Path) -> dict[str, str]:
    """The digests of the files that an earlier report wrote; empty where there is none."""
    try:
        digests = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    known = digests.items() if isinstance(digests, dict) else ()
    return {name: digest for name, digest in known if _OURS.fullmatch(name) and isinstance(digest, str)}


def _digest(file: Path) -> str:
    return Content.of(file).sha256


def _is_within(file: Path, image: str) -> bool:
    """Whether a file is an image, or lies in the folder of several."""
    real = Path(os.path.realpath(file))
    return real.is_relative_to(os.path.realpath(image)) or os.path.samefile(file, image)


def _write(evaluation: Evaluation, folder: Path, ignore: int | None) -> None:
    scores = evaluation.scores
    pictures = [("confusion.png", "Confusion", "Share of each class's true pixels, by what they were taken for.")]
    confusion_chart(by_truth(scores["confusion"]["by_truth"]), evaluation.classes).save(folder / "confusion.png")
    if (calibration := evaluation.calibration) is not None:
        chart = reliability_chart(pooled(calibration.before), pooled(calibration.after), calibration.temperature)
        chart.save(folder / "reliability.png")
        text = (
            "How often predictions of each confidence are right; the diagonal is a network that knows how sure to be."
        )
        pictures.append(("reliability.png", "Calibration", text))
    for kind, places in zip(("worst", "best"), chosen(evaluation, ignore), strict=True):
        for number, place in enumerate(places, 1):
            name = f"{kind}-{number}.png"
            draw(place, evaluation.classes, ignore).save(folder / name)
            pictures.append((name, f"{kind.capitalize()} places" if number == 1 else "", ""))
    text = json.dumps(scores, indent=1, ensure_ascii=False)
    (folder / "scores.json").write_text(text + "\n", encoding="utf-8")
    (folder / PAGE).write_text(_page(evaluation, pictures), encoding="utf-8")


def _page(evaluation: Evaluation, pictures: list[tuple[str, str, str]]) -> str:
    cases = evaluation.scores["cases"]
    first = cases[0]
    what = f"{first['prediction']} against {first['truth']}"
    if len(cases) > 1:
        what = f"{len(cases)} cases, such as {what}"
    body = [f"<h1>Evaluation</h1><p>{escape(what)}</p>", *map(_table, sheets(evaluation)), "<ul>"]
    body += [f"<li>{escape(note)}</li>" for note in notes(evaluation)]
    body.append("</ul>")
    for name, title, text in pictures:
        body += [f"<h2>{escape(title)}</h2>"] if title else []
        body += [f"<p>{escape(text)}</p>"] if text else []
        body.append(f'<p><img src="{name}" alt="{escape(title or name)}"></p>')
    body.append(f'<p>All figures: <a href="scores.json">scores.json</a>. lmseg {version("lmseg")}.</p>')
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8"><title>Evaluation</title>',
            f"<style>{_STYLE}</style></head><body>",
            *body,
            "</body></html>\n",
        ]
    )


def _table(sheet: Sheet) -> str:
    rows = [f"<h2>{escape(sheet.title or 'Classes')}</h2><table>", _row(sheet.heads, "th")]
    for number, cells in enumerate(sheet.rows):
        first_sum = number == len(sheet.rows) - sheet.sums
        rows.append(_row(cells, "td", ' class="sum"' if first_sum else ""))
    return "\n".join([*rows, "</table>"])


def _row(cells: list[str], tag: str, kind: str = "") -> str:
    return f"<tr{kind}>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
