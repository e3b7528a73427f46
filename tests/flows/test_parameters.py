"""What a run may be told."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from flows.parameters import RegionParameters, VolumeParameters, parse_bands, parse_bytes
from tiling import InputError


@pytest.mark.parametrize(("text", "n"), [("2GiB", 2**31), ("500 MB", 500_000_000), ("1.5kb", 1500), (7, 7)])
def test_sizes_in_words(text: str | int, n: int) -> None:
    assert parse_bytes(text) == n


@pytest.mark.parametrize("text", ["much", "2 parsecs", "", "-1GiB", "1.2.3GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="2GiB"):
        parse_bytes(text)


def test_bands() -> None:
    assert parse_bands("3,2,1") == (3, 2, 1)
    assert parse_bands(None) is None
    with pytest.raises(InputError, match="1,2,3"):
        parse_bands("red")


@pytest.mark.parametrize(
    "wrong",
    [{"sources": []}, {"output": Path("out")}, {"overlap": 1}, {"overlap": -0.1}, {"tile": 0}, {"workers": 0},
     {"memory": "lots"}, {"device": "tpu"}, {"tiles": 5}],
)  # fmt: skip
def test_what_cannot_run_is_refused(wrong: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        RegionParameters(**({"sources": ["a.tif"], "output": tmp_path} | wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [RegionParameters, VolumeParameters])
def test_parameters_survive_json(kind: type[RegionParameters | VolumeParameters], tmp_path: Path) -> None:
    """Prefect keeps and sends them as JSON."""
    given = kind(sources=["a"], output=tmp_path, memory="3GiB")
    assert kind.model_validate_json(given.model_dump_json()) == given


@pytest.mark.parametrize("kind", [RegionParameters, VolumeParameters])
def test_every_field_explains_itself_in_the_form(kind: type[RegionParameters | VolumeParameters]) -> None:
    for name, field in kind.model_fields.items():
        assert field.description, name
