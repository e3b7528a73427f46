"""The command line. Each command imports what it needs when it runs: `lmseg --help` and `lmseg info` load no torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from flows.parameters import Parameters

app = typer.Typer(
    help="Segment satellite rasters and medical volumes that are larger than memory.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Input = Annotated[
    str, typer.Argument(help="Image: a file, an address, or several joined by commas; - for a missing one.")
]
Model = Annotated[
    str | None, typer.Option("--model", "-m", help="Bundled model, folder or hub name; see lmseg models.")
]
Bands = Annotated[str | None, typer.Option(help="Bands for the model, counted from 1: 1,2,3.")]
Form = Annotated[str | None, typer.Option(help="NIfTI form to trust: sform or qform.")]
Tile = Annotated[int | None, typer.Option(help="Pixels a side that the network sees.")]
Overlap = Annotated[float, typer.Option(help="Share of a tile that its neighbour sees again.")]
Memory = Annotated[str, typer.Option(help="Memory a process may take.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Precision = Annotated[str, typer.Option(help="auto, float32 or bfloat16.")]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the network first, by torch.compile.")]
AnySpacing = Annotated[
    bool, typer.Option("--any-spacing", help="Go on with pixels of a size the model was not tested with.")
]
BBox = Annotated[tuple[float, float, float, float] | None, typer.Option(metavar="W S E N", help="Part of a raster.")]
BBoxCrs = Annotated[str | None, typer.Option(help="CRS of --bbox, such as EPSG:4326; the image's own by default.")]
Area = Annotated[str | None, typer.Option(help="GeoJSON file with the polygons of a raster to segment.")]
Box = Annotated[
    tuple[float, float, float, float, float, float] | None,
    typer.Option(metavar="X0 Y0 Z0 X1 Y1 Z1", help="Part of a volume, in world millimetres (RAS+)."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are not this run's.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Runs the command line: exit 0 done, 2 bad input or usage (one line), 1 anything else (one line)."""
    from tiling.heap import keep_pages

    keep_pages()
    from lmseg_core.errors import ModelError, TrainingError
    from tiling.errors import BlockError, InputError, OutputError

    try:
        app(_options_first(sys.argv[1:]))
    except (InputError, ModelError) as error:
        _fail(str(error), 2)
    except (BlockError, OutputError, TrainingError, ConnectionError) as error:
        _fail(str(error), 1)
    except SystemExit as stop:
        if stop.code != 130:  # what typer makes of Ctrl-C
            raise
        _fail("interrupted; run the same command again to resume", 1)
    except Exception as error:
        # Dask's, which is slow to import: four workers died of one block.
        if type(error).__name__ != "KilledWorker":
            raise
        _fail("Dask workers died, often for want of memory; pass a smaller --memory or --workers and run again", 1)


def _options_first(arguments: list[str]) -> list[str]:
    """The arguments with `-,t2.nii.gz`, an image whose first file is missing, where it is not taken for an option."""
    images = [a for a in arguments if a.startswith("-,")]
    rest = [a for a in arguments if a not in images]
    return [*rest, *([] if "--" in rest else ["--"]), *images] if images else arguments


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"lmseg {installed('lmseg')}")
        raise typer.Exit


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path("lmseg-demo"),
) -> None:
    """Segment the bundled samples with the bundled models."""
    from flows.demo import run_demo

    run_demo(output.resolve())


@app.command()
def info(source: Input, bands: Bands = None, form: Form = None, as_json: Json = False) -> None:
    """Say what an image is, where it lies and what would be read."""
    from flows.describe import describe
    from flows.parameters import parse_bands
    from tiling.sources import open as open_source

    facts = describe(open_source(source, bands=parse_bands(bands), form=form))
    print(json.dumps(facts, indent=1) if as_json else _aligned(facts))


@app.command()
def plan(
    source: Input,
    model: Model = None,
    tile: Tile = None,
    overlap: Overlap = 0.25,
    memory: Memory = "2GiB",
    device: Device = "auto",
    precision: Precision = "auto",
    compile: Compile = False,
    any_spacing: AnySpacing = False,
    bands: Bands = None,
    bbox: BBox = None,
    bbox_crs: BBoxCrs = None,
    area: Area = None,
    box: Box = None,
    form: Form = None,
    seams: Annotated[
        str | None, typer.Option(metavar="SHARE", help="Find the overlap that changes less on borders: 0.1%.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what segmenting an image will take.

    Tiles, blocks, memory, disk and time; writes nothing. --seams also predicts places on tile borders, with one overlap
    after another.
    """
    parameters = _parameters([source], ".", locals())
    from flows.stages import foresee

    if seams is None:
        facts = foresee(source, parameters)
        print(json.dumps(facts, indent=1) if as_json else _aligned(facts))
        return
    from flows.overlap import parse_share, plan_overlap

    bound = parse_share(seams)
    facts = foresee(source, parameters)
    found = plan_overlap(source, parameters, bound)
    facts |= found.facts()
    print(
        json.dumps(facts | {"seams": found.to_json()}, indent=1) if as_json else f"{found.table()}\n\n{_aligned(facts)}"
    )
    found.refuse()


@app.command()
def segment(
    sources: Annotated[list[str], typer.Argument(metavar="INPUT", help="Images, each segmented on its own.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder for the results, or s3://bucket/prefix.")] = ".",
    model: Model = None,
    tile: Tile = None,
    overlap: Overlap = 0.25,
    memory: Memory = "2GiB",
    device: Device = "auto",
    precision: Precision = "auto",
    compile: Compile = False,
    any_spacing: AnySpacing = False,
    workers: Annotated[int, typer.Option(help="Processes on this machine.")] = 1,
    cluster: Annotated[str | None, typer.Option(help="Dask scheduler to use instead: tcp://host:8786.")] = None,
    bands: Bands = None,
    bbox: BBox = None,
    bbox_crs: BBoxCrs = None,
    area: Area = None,
    box: Box = None,
    form: Form = None,
    probability: Annotated[bool, typer.Option("--probability", help="Also write class probabilities.")] = False,
    uncertainty: Annotated[bool, typer.Option("--uncertainty", help="Also write the uncertainty.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start again instead of resuming.")] = False,
    overwrite: Overwrite = False,
    check: Annotated[str, typer.Option(help="auto, or content to read every byte of the input first.")] = "auto",
    profile: Annotated[bool, typer.Option("--profile", help="Also say what held the device up.")] = False,
) -> None:
    """Segment images; the same command again resumes where it stopped."""
    parameters = _parameters(sources, output, {k: v for k, v in locals().items() if k != "profile"})
    from flows.console import print_profile, print_summary, segment_with_progress

    for report in segment_with_progress(parameters):
        print_summary(report.summary())
        if profile:
            print_profile(report.summary())


@app.command()
def export(
    run: Annotated[str, typer.Argument(metavar="RUN.zarr", help="Store of a run.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="File to write: .tif, .nii or .nii.gz.")],
    what: Annotated[str, typer.Option(help="labels, probability or uncertainty.")] = "labels",
    overwrite: Overwrite = False,
) -> None:
    """Write a run as GeoTIFF or NIfTI."""
    import tiling

    for file in tiling.export(tiling.open_store(run), out, what, overwrite=overwrite):
        print(file)


@app.command()
def verify(
    run: Annotated[str, typer.Argument(metavar="RUN.zarr", help="Store of a run.")],
    seams: Annotated[bool, typer.Option("--seams", help="Also measure seams on tile and block borders.")] = False,
    places: Annotated[int | None, typer.Option(metavar="N", help="How many of them --seams looks at.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Check that a run is complete, undamaged and in its place.

    Geometry and labels of its exports are compared too; exit 1 where something is wrong. --seams predicts places on
    borders again, by tiles centred on them, and writes them as a map beside the run.
    """
    import tiling
    from flows.exports import exports_of
    from flows.stages import reopen
    from tiling.errors import DamageError

    certificate = None
    try:
        store = tiling.open_store(run)
        if seams or places is not None:
            from flows.seams import certify, check_count

            certificate = certify(run, store, check_count(places), overwrite)
    except DamageError as error:
        checks = [tiling.Check("store", False, str(error))]
    else:
        checks = tiling.verify(store, reopen(store), exports_of(run))
    if certificate is not None:
        checks.append(certificate.check)
    if as_json:
        told: Any = [{"name": c.name, "passed": c.passed, "detail": c.detail} for c in checks]
        print(json.dumps(told if certificate is None else {"checks": told, "seams": certificate.to_json()}, indent=1))
    else:
        for c in checks:
            print(f"{'ok  ' if c.passed else 'FAIL'} {c.name}: {c.detail}")
        if certificate is not None:
            print(f"\n{certificate.table()}\n\n{_aligned(certificate.field.facts())}\n{certificate.layer}")
    if not all(c.passed for c in checks):
        raise typer.Exit(1)


@app.command()
def evaluate(
    prediction: Annotated[str, typer.Argument(metavar="PRED", help="Raster, volume, RUN.zarr, or a folder of them.")],
    truth: Annotated[str, typer.Argument(metavar="TRUTH", help="True labels: the same, on the same grid.")],
    ignore: Annotated[int | None, typer.Option(help="Value of the truth to leave out, besides its nodata.")] = None,
    tolerance: Annotated[
        float | None, typer.Option(metavar="DISTANCE", help="At which outlines agree: mm, CRS units or pixels.")
    ] = None,
    surface: Annotated[bool, typer.Option(help="Compare outlines: boundary F1, HD95, surface Dice.")] = True,
    report: Annotated[Path | None, typer.Option(metavar="DIR", help="Also write a page with pictures.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Score labels against the truth.

    IoU, Dice, outlines and confusion of each class, pixel accuracy, calibration. Two folders are compared case by case.
    """
    from flows.evaluation.report import check_folder, write_report
    from flows.evaluation.scores import told
    from flows.evaluation.tables import evaluate_with_progress, table

    parameters = told(
        prediction=prediction,
        truth=truth,
        ignore=ignore,
        tolerance=tolerance,
        surface=surface,
        report=None if report is None else report.resolve(),
        overwrite=overwrite,
    )
    check_folder(parameters)
    evaluation = evaluate_with_progress(parameters)
    page = None if parameters.report is None else write_report(evaluation, parameters)
    print(json.dumps(evaluation.scores, indent=1) if as_json else table(evaluation))
    if page is not None:
        print(page, file=sys.stderr if as_json else sys.stdout)


@app.command()
def finetune(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Settings of the training.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the result; else the file's.")
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Folder of the data; else data.root of the file.")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", help="Another value: optimise.rate=0.001.")] = None,
    search: Annotated[bool, typer.Option("--search", help="Look for the best settings with Optuna.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start again instead of going on.")] = False,
    as_json: Json = False,
) -> None:
    """Train a network; the same command again goes on where it stopped."""
    from flows.training.run import load_settings, parse_changes, run_search, run_training

    told = parse_changes(changes or [])
    told |= {key: str(value) for key, value in (("output", output), ("data.root", data)) if value is not None}
    settings = load_settings(config, told)
    facts = run_search(settings, fresh) if search else run_training(settings, fresh).facts()
    print(json.dumps(facts, indent=1) if as_json else _aligned(facts))


@app.command()
def models(as_json: Json = False) -> None:
    """List the bundled models."""
    from flows.describe import describe_models

    rows = describe_models()
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(f"{row['name']}\n{_aligned({k: v for k, v in row.items() if k != 'name'}, '  ')}")


# Arguments of commands that are no parameters of a run.
_NOT_TOLD = ("source", "sources", "output", "seams", "as_json")


def _parameters(sources: list[str], output: str, options: dict[str, Any]) -> Parameters:
    """The options that were given, as the model of the first source's kind."""
    from pydantic import ValidationError

    from flows.parameters import RegionParameters, VolumeParameters, parse_bands
    from tiling.errors import InputError
    from tiling.sources import is_volume

    kind = VolumeParameters if is_volume(sources[0]) else RegionParameters
    given = {k: v for k, v in options.items() if v is not None and k not in _NOT_TOLD}
    if "bands" in given:
        given["bands"] = parse_bands(given["bands"])
    if foreign := [k for k in given if k not in kind.model_fields]:
        what = "volumes" if kind is VolumeParameters else "rasters"
        raise InputError(f"{sources[0]}: --{foreign[0].replace('_', '-')} is not for {what}; leave it out")
    try:
        # A folder of the terminal's; parameters have no folder to begin at.
        return kind(sources=sources, output=output if "://" in output else Path(output).resolve(), **given)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else "input"
        raise InputError(f"{option} {first['input']!r}: {first['msg'].removeprefix('Value error, ')}") from None


def _aligned(facts: dict[str, Any], indent: str = "") -> str:
    width = max(map(len, facts))
    return "\n".join(f"{indent}{name:<{width}}  {value}" for name, value in facts.items())


def _fail(message: str, code: int) -> None:
    print(f"lmseg: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
