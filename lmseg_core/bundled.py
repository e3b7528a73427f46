"""Where models are: bundled with the package, in a folder, or on the Hugging Face hub."""

import difflib
import re
from pathlib import Path

from lmseg_core.description import CONFIG, PROCESSOR, read_description
from lmseg_core.errors import ModelError

HOME = Path(__file__).parent / "models"
WEIGHTS = "model.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def names() -> tuple[str, ...]:
    """Return the names of the bundled models."""
    return tuple(sorted(path.parent.name for path in HOME.glob(f"*/{CONFIG}")))


def folder(name_or_path: str | Path) -> Path:
    """Return the local folder of a bundled name, of a folder, or of a hub id "owner/name" (downloaded once).

    The folder is checked to hold an LMSeg model in safetensors. Raises ModelError where there is none.
    """
    name = str(name_or_path)
    if name in names():
        return HOME / name
    path = Path(name).expanduser()
    if path.is_dir():
        _check(path)
        return path.resolve()
    if path.is_file():
        _refuse_pickle(path)
        raise ModelError(f"{name} is a file; pass the folder that holds {CONFIG} and {WEIGHTS}.")
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise ModelError(f"{name} is no folder and no bundled model; {_suggest(name)}")
    path = _download(name)
    _check(path)
    return path


def _check(path: Path) -> None:
    if not (path / WEIGHTS).is_file():
        for pattern in _PICKLES:
            for pickled in sorted(path.glob(pattern)):
                _refuse_pickle(pickled)
        raise ModelError(f"{path} has no {WEIGHTS}; write it with model.save_pretrained({path.name!r}).")
    for file, writer in ((CONFIG, "model"), (PROCESSOR, "processor")):
        if not (path / file).is_file():
            raise ModelError(f"{path} has no {file}; write it with {writer}.save_pretrained({path.name!r}).")
    least, size = read_description(path).network.least_weights(), (path / WEIGHTS).stat().st_size
    if least > size:  # building such a network would take the memory first, and find out then
        raise ModelError(
            f"{path / CONFIG} describes {least} weights or more, but {WEIGHTS} has {size} bytes; save both again."
        )


def _refuse_pickle(path: Path) -> None:
    if any(path.match(pattern) for pattern in _PICKLES):
        raise ModelError(
            f"{path} is a pickle, which can run any code when opened; convert it to {WEIGHTS} where you trust it."
        )


def _suggest(name: str) -> str:
    near = difflib.get_close_matches(name.rsplit("/", 1)[-1], names(), n=1, cutoff=0.5)
    hint = f'did you mean "{near[0]}"? ' if near else ""
    return f"{hint}Bundled: {', '.join(names()) or 'none'}. Or pass a model folder, or a hub id owner/name."


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, HFValidationError, OSError) as error:  # OSError: no network, and hub offline
        reason = type(error).__name__
        raise ModelError(f"{name} is not here and the hub did not give it ({reason}); {_suggest(name)}") from None
