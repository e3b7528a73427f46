"""Names of bands: one spelling, the right order, and what contradicts it."""

import pytest

from tests.tiling.refusals import refused
from tiling.bands import band_name, check_names, matching_bands

MODEL = ("B02", "B03", "B04", "B08", "B11", "B12")
ALL = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        *((t, "b4") for t in ("B04", "b4", "B4", "SR_B4", "LC08_B4", "B04 (665 nm)", "B04 - Red", "band 4 red")),
        ("B8A", "b8a"),
        ("B08", "b8"),
        ("Red", "red"),
        ("SWIR 1", "swir1"),
        ("swir_1", "swir1"),
        *((t, "") for t in ("", " ", "Band 4", "band_4", "band 1", "channel 2", "Layer_3")),
        ("rgb4", "rgb4"),
    ],
)  # fmt: skip
def test_spellings_of_a_band_are_one_name(text: str, name: str) -> None:
    assert band_name(text) == name


@pytest.mark.parametrize(
    "names",
    [
        MODEL,
        ("B2", "B3", "B4", "B8", "B11", "B12"),
        ("",) * 6,
        ("Band 1", "Band 2", "Band 3", "Band 4", "Band 5", "Band 6"),
        ("blue", "green", "red", "nir", "swir1", "swir2"),  # another vocabulary: nobody can tell
        ("B02", "", "", "B08", "", ""),
    ],
)
def test_names_that_agree_or_say_nothing_pass(names: tuple[str, ...]) -> None:
    assert check_names(names, MODEL, names, "a.tif") is None


@pytest.mark.parametrize(
    ("names", "every", "words"),
    [
        (MODEL[::-1], MODEL[::-1], "has B12 where the model expects B02; pass --bands 6,5,4,3,2,1"),
        (MODEL[::-1], MODEL, "has B12 where the model expects B02; pass --bands 1,2,3,4,5,6"),
        (ALL[:6], ALL, "has B02 where the model expects B03; pass --bands 2,3,4,8,11,12"),
        (
            ("B05", "B06", "B07", "B8A", "B09", "B01"),
            ALL,
            "B05 where the model expects B02; pass --bands 2,3,4,8,11,12",
        ),
        (("B04", "B03", "B02", "", "", ""), ("B04", "B03", "B02", "", "", ""), "choose --bands in the order B02, B03"),
        (("B8", "B4", "B3", "B2", "B11", "B12"),) * 2 + ("pass --bands 4,3,2,1,5,6",),
    ],
)
def test_contradictions_are_refused_with_the_right_bands(
    names: tuple[str, ...], every: tuple[str, ...], words: str
) -> None:
    with refused("a.tif", words):
        check_names(names, MODEL, every, "a.tif")


@pytest.mark.parametrize("names", [("red", "green", "blue"), ("Blue", "Green", "Red")])
def test_colours_contradict_each_other(names: tuple[str, ...]) -> None:
    wanted = tuple(name.lower() for name in names[::-1])
    with refused("pass --bands 3,2,1"):
        check_names(names, wanted, names, "a.tif")


def test_bands_of_another_instrument_are_doubtful() -> None:
    landsat = ("B2", "B3", "B4", "B5", "B6", "B7")
    line = check_names(landsat, MODEL, landsat, "landsat.tif")
    assert line == "landsat.tif has B5 where the model expects B08; the labels are right only if both mean the same"


def test_bands_are_found_by_name() -> None:
    assert matching_bands(ALL, MODEL) == (2, 3, 4, 8, 11, 12)
    assert matching_bands(ALL[:5], MODEL) is None
    assert matching_bands((*ALL, "B02"), MODEL) is None  # two of one name
    assert matching_bands(("band 1",) * 6, ("band 1",) * 3) is None
