"""The seam to the engine: placing, scoring, binding statistics, pickling, and refusing what cannot run."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lmseg_core import LMSegImageProcessor, ModelError, Predictor, SegmentClass


def raw(seed: int = 0, size: tuple[int, ...] = (16, 16)) -> np.ndarray:
    return np.random.default_rng(seed).integers(500, 4000, (2, *size)).astype(np.uint16)


def test_the_seam(fixed_folder: Path) -> None:
    model = Predictor.from_pretrained(fixed_folder, device="cpu")
    assert (model.channels, model.ndim, model.tile, model.bands) == (2, 2, (16, 16), ("red", "green"))
    assert model.classes[1] == SegmentClass(1, "b", "#00ff00", "4421005")
    assert model.needs_statistics is False
    scores = model(model.place(raw())[None])
    assert (scores.shape, scores.dtype) == ((1, 3, 16, 16), torch.float32)
    assert torch.allclose(scores.sum(1), torch.ones(1, 16, 16), atol=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64", ">u2", ">f4"])
def test_blocks_keep_their_dtype_and_values(fixed_folder: Path, dtype: str) -> None:
    model = Predictor.from_pretrained(fixed_folder)
    values = (raw() // 20).astype(dtype)
    values.flags.writeable = False
    placed = model.place(values, np.ones((16, 16), bool))
    assert placed.numpy().dtype == np.dtype(dtype).newbyteorder("=")
    assert np.array_equal(placed.numpy(), values)


def test_nan_and_nodata_become_the_mean_and_do_not_leak(fixed_folder: Path) -> None:
    model = Predictor.from_pretrained(fixed_folder)
    values = raw().astype(np.float32)
    values[0, 3, 4], values[1, 5, 6] = np.nan, np.inf
    valid = np.ones((16, 16), bool)
    valid[8:, :4] = False
    placed = model.place(values, valid)
    mean = torch.tensor([1000.0, 2000.0])  # 0.1 and 0.2 before the scale of 1e-4
    assert torch.allclose(placed[:, 8:, :4], mean.view(2, 1, 1))
    assert placed[0, 3, 4] == 1000
    assert placed[1, 3, 4] == values[1, 3, 4]
    assert torch.isfinite(model(placed[None])).all()
    garbage = values.copy()
    garbage[:, ~valid] = 1e30
    assert torch.equal(model(model.place(garbage, valid)[None]), model(placed[None]))


def test_integer_nodata_becomes_the_rounded_mean(fixed_folder: Path) -> None:
    placed = Predictor.from_pretrained(fixed_folder).place(raw(), np.zeros((16, 16), bool))
    assert placed.dtype == torch.uint16
    assert np.array_equal(np.unique(placed[1].numpy()), [2000])


def test_a_window_does_not_see_the_others(fixed_folder: Path, image_folder: Path) -> None:
    flat = Predictor.from_pretrained(fixed_folder)
    deep = Predictor.from_pretrained(image_folder).with_statistics([2000, 2000], [900, 900])
    for model, size in ((flat, (16, 16)), (deep, (16, 16, 16))):
        windows = [model.place(raw(seed, size))[None] for seed in range(4)]
        together = model(torch.cat(windows))
        for index, window in enumerate(windows):
            assert torch.equal(together[index], model(window)[0])
        assert torch.equal(model(torch.cat([windows[2], windows[0]]))[1], together[0])


def test_scores_do_not_depend_on_the_number_of_threads(fixed_folder: Path, image_folder: Path) -> None:
    code = (
        "import sys, hashlib, numpy as np, torch; from lmseg_core import Predictor\n"
        "for folder, size in zip(sys.argv[1:], [(64, 64), (24, 24, 24)]):\n"
        "    model = Predictor.from_pretrained(folder, device='cpu')\n"
        "    model = model.with_statistics([0, 0], [1, 1]) if model.needs_statistics else model\n"
        "    x = torch.randn(3, 2, *size, generator=torch.Generator().manual_seed(0)) * 1000\n"
        "    print(hashlib.sha256(model(x).numpy().tobytes()).hexdigest())\n"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code, str(fixed_folder), str(image_folder)],
            env=os.environ | {"OMP_NUM_THREADS": threads},
            capture_output=True,
            check=True,
        ).stdout
        for threads in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert len(outputs[0].split()) == 2


def test_statistics_are_bound_and_change_the_digest(image_folder: Path) -> None:
    model = Predictor.from_pretrained(image_folder)
    assert model.needs_statistics is True
    with pytest.raises(ModelError, match=r"bind them first with with_statistics\(mean, std\)"):
        model.place(raw(size=(16, 16, 16)))
    one, two = model.with_statistics([2000, 1000], [500, 500]), model.with_statistics([2000, 1001], [500, 500])
    assert one.needs_statistics is False
    assert len({model.digest, one.digest, two.digest}) == 3
    assert one.digest == model.with_statistics((2000.0, 1000.0), np.array([500, 500])).digest
    block = raw(size=(16, 16, 16))
    doubled = model.with_statistics([4000, 2000], [1000, 1000])
    assert torch.allclose(one(one.place(block)[None]), doubled(doubled.place(block * 2)[None]), atol=1e-5)
    with pytest.raises(ModelError, match=r"got mean \(1.0,\); give one finite value for each of its 2 bands"):
        model.with_statistics([1], [1, 1])


def test_pickles_small_and_equal(fixed_folder: Path, image_folder: Path) -> None:
    for model in (
        Predictor.from_pretrained(fixed_folder),
        Predictor.from_pretrained(image_folder).with_statistics([1, 2], [3, 4]),
    ):
        sent = pickle.dumps(model)
        assert len(sent) < 1000
        got = pickle.loads(sent)
        assert got.digest == model.digest
        x = torch.rand(1, 2, *model.tile) * 3000
        assert torch.equal(got(x), model(x))


def test_a_predictor_that_was_sent_loads_no_other_files(
    fixed_folder: Path, tmp_path: Path, make_network: Callable
) -> None:
    shutil.copytree(fixed_folder, tmp_path / "model")
    model = Predictor.from_pretrained(tmp_path / "model")
    sent = pickle.dumps(model)
    assert pickle.loads(sent).digest == model.digest
    weights = tmp_path / "model" / "model.safetensors"
    state = weights.stat()
    shutil.copytree(fixed_folder, tmp_path / "other")
    other = make_network()
    with torch.no_grad():
        other.head.bias += 1
    other.save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(weights)
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))  # as `cp -p` and rsync leave it
    assert weights.stat().st_size == state.st_size
    replaced = pickle.loads(sent)
    assert replaced.digest != model.digest
    windows = torch.zeros(1, 2, 16, 16)
    again = pickle.loads(pickle.dumps(replaced))
    for use in (lambda: replaced.place(raw()), lambda: replaced(windows), lambda: again(windows)):
        with pytest.raises(ModelError, match="holds other files than when it was loaded first; put those back"):
            use()
    assert Predictor.from_pretrained(tmp_path / "model").digest != model.digest


def test_the_digest_follows_each_file(fixed_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(fixed_folder, copy)
    digests = [Predictor.from_pretrained(fixed_folder).digest, Predictor.from_pretrained(copy).digest]
    assert digests[0] == digests[1]
    for name, key, value in (("config.json", "tile", [32, 32]), ("preprocessor_config.json", "scale", 2e-4)):
        settings = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps(settings | {key: value}))
        digests.append(Predictor.from_pretrained(copy).digest)
    assert len(set(digests)) == 3


def test_wrong_blocks_are_refused(fixed_folder: Path) -> None:
    model = Predictor.from_pretrained(fixed_folder)
    with pytest.raises(ModelError, match=r"expects 2 bands \(red, green\) over 2 axes; .* \(5, 16, 16\). Select"):
        model.place(np.zeros((5, 16, 16), np.uint8))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_that_is_not_there_is_refused(fixed_folder: Path) -> None:
    with pytest.raises(ModelError, match=r'device "cuda" was asked for, .* use cpu or auto'):
        Predictor.from_pretrained(fixed_folder, device="cuda")
    with pytest.raises(ModelError, match=r'device "gpu" is not known; use auto'):
        Predictor.from_pretrained(fixed_folder, device="gpu")


def test_damaged_folders_are_refused(fixed_folder: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(fixed_folder, cut)
    weights = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelError, match=r"cut cannot be loaded .*; save or download it again"):
        Predictor.from_pretrained(cut)
    deeper = tmp_path / "deeper"
    shutil.copytree(fixed_folder, deeper)
    settings = json.loads((deeper / "config.json").read_text())
    (deeper / "config.json").write_text(json.dumps(settings | {"blocks": 2}))
    with pytest.raises(ModelError, match=r"model.safetensors lacks .*; save it again"):
        Predictor.from_pretrained(deeper)
    shallower = tmp_path / "shallower"
    shutil.copytree(fixed_folder, shallower)
    (shallower / "config.json").write_text(json.dumps(settings | {"decoder": "fcn"}))
    with pytest.raises(ModelError, match=r"model.safetensors (lacks|has) .*; save"):
        Predictor.from_pretrained(shallower)
    wider = tmp_path / "wider"
    shutil.copytree(fixed_folder, wider)
    (wider / "config.json").write_text(json.dumps(settings | {"widths": [8, 12, 20]}))
    with pytest.raises(ModelError, match=r"wider cannot be loaded"):
        Predictor.from_pretrained(wider)


def test_weights_that_the_configuration_does_not_use_are_refused(tmp_path: Path, make_network: Callable) -> None:
    make_network(deep_supervision=1).save_pretrained(tmp_path)
    LMSegImageProcessor(mode="image").save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"deep_supervision": 0}))
    with pytest.raises(ModelError, match=r"model.safetensors has auxiliary.0.bias, .* no use for; save both again"):
        Predictor.from_pretrained(tmp_path)


def test_bfloat16_answers_nearly_the_same(fixed_folder: Path, image_folder: Path) -> None:
    deep = {"mean": [2000, 2000], "std": [900, 900]}
    for folder, size, bound in ((fixed_folder, (64, 64), {}), (image_folder, (24, 24, 24), deep)):
        exact, rough = (
            Predictor.from_pretrained(folder, device="cpu", precision=name) for name in ("float32", "bfloat16")
        )
        if bound:
            exact, rough = exact.with_statistics(**bound), rough.with_statistics(**bound)
        assert exact.digest != rough.digest
        assert pickle.loads(pickle.dumps(rough)).digest == rough.digest
        windows = exact.place(raw(0, size))[None]
        scores = exact(windows), rough(windows)
        assert scores[1].dtype == torch.float32
        assert not torch.equal(*scores)
        assert (scores[0] - scores[1]).abs().mean() < 0.01
    # On a CPU float32 is the default: its bfloat16 is slow.
    exact = Predictor.from_pretrained(fixed_folder, device="cpu", precision="float32")
    assert Predictor.from_pretrained(fixed_folder, device="cpu").digest == exact.digest
    with pytest.raises(ModelError, match='precision "float16" is not known; use auto, float32 or bfloat16'):
        Predictor.from_pretrained(fixed_folder, precision="float16")


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_a_compiled_network_answers_the_same(
    tmp_path: Path, make_network: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    make_network(widths=(4, 8)).save_pretrained(tmp_path)
    LMSegImageProcessor(mode="fixed", image_mean=[2000, 2000], image_std=[900, 900]).save_pretrained(tmp_path)
    plain, compiled = (Predictor.from_pretrained(tmp_path, device="cpu", compiled=c) for c in (False, True))
    assert compiled.digest != plain.digest
    assert not [record for record in caplog.records if record.name == "lmseg_core.predictor"]
    windows = torch.stack([plain.place(raw(seed, plain.tile)) for seed in range(2)])
    assert torch.allclose(compiled(windows), plain(windows), atol=1e-5)


def test_where_torch_cannot_compile_the_network_runs_as_it_is(fixed_folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys, torch; from lmseg_core import Predictor\n"
        "x = torch.rand(2, 2, 16, 16) * 3000\n"
        "plain, compiled = (Predictor.from_pretrained(sys.argv[1], device='cpu', compiled=c) for c in (False, True))\n"
        "print(torch.equal(plain(x), compiled(x)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(fixed_folder)],
        env=os.environ | {"CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "True\n"
    assert "torch.compile failed (" in done.stderr
    assert "the network runs as it is" in done.stderr
