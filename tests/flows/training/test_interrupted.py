"""`lmseg finetune` killed, on disks that are full, and on files that break meanwhile."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flows.training.run import load_settings, run_training
from lmseg_core.training.trainer import WindowTrainer, last_checkpoint
from tests.flows.conftest import Cli, SmallDisk
from tests.flows.training.small import write_config, write_desk
from tests.local_server import PATIENCE

AVERAGED = {"optimise.ema": 0.5}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training on `desk` that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    write_desk(folder)
    run_training(load_settings(write_config(folder, AVERAGED), {}))
    return folder / "run"


def _assert_equal(one: Path, other: Path) -> None:
    mine, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (one, other))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("kib", [70, 190, 330])
def test_a_full_disk_keeps_the_checkpoint_before_and_a_rerun_goes_on(
    kib: int, cli: Cli, desk: Path, whole: Path, small_disk: SmallDisk
) -> None:
    """It is full at the first checkpoint, a later one, or the pictures of the finished model; then it is not."""
    small_disk.resize(f"{kib}k")
    run = small_disk.folder / "run"
    config = write_config(desk, AVERAGED | {"output": str(run)})
    code, _, err = cli("finetune", config)
    assert code == 1, err
    assert "cannot be written" in err.splitlines()[-1]
    assert "Make room and run again" in err.splitlines()[-1]
    kept = last_checkpoint(run)
    small_disk.resize("20m")
    code, _, err = cli("finetune", config)
    assert code == 0, err
    steps = [line.split()[1] for line in err.splitlines() if line.startswith("step ")]
    assert steps == ["2/4", "4/4"][0 if kept is None else int(kept.name[-1]) // 2 :]
    _assert_equal(run, whole)


@pytest.mark.usefixtures("quick_pictures")
def test_a_killed_command_resumes_to_the_weights_of_an_unbroken_one(cli: Cli, desk: Path) -> None:
    changes = {
        "model.config": {"widths": [4, 8], "dropout": 0.2},
        "optimise.steps": 40,
        "optimise.ema": 0.9,
        "augment.noise": 0.1,
        "watch.evaluate": 10,
    }
    broken = write_config(desk, changes | {"output": str(desk / "broken")})
    command = [sys.executable, "-c", "from flows.cli import main; main()", "finetune", str(broken)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        end = time.monotonic() + PATIENCE
        while last_checkpoint(desk / "broken") is None:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.5))
    finally:
        process.kill()
        process.communicate()
    assert not (desk / "broken" / "report.json").exists()
    assert cli("finetune", broken)[0] == 0
    assert cli("finetune", write_config(desk, changes | {"output": str(desk / "whole")}))[0] == 0
    _assert_equal(desk / "broken", desk / "whole")


def test_a_file_that_breaks_under_a_reading_process_is_one_line(
    cli: Cli, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, image = WindowTrainer.train, desk / "a.tif"

    def cut(self: WindowTrainer, *rest: Any, **named: Any) -> Any:
        os.truncate(image, image.stat().st_size // 2)  # after the last look at it in this process
        return train(self, *rest, **named)

    monkeypatch.setattr(WindowTrainer, "train", cut)
    code, _, err = cli("finetune", write_config(desk, {"data.workers": 1, "data.cache": 0}))
    assert code == 2
    assert err.startswith(f"lmseg: {image} ")
    assert err.count("\n") == 1
