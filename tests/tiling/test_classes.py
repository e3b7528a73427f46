"""The table of classes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiling.refusals import refused
from tiling.classes import Class, ClassTable

WORDS = st.text("aÄ<&\"' \n", max_size=5)
rows = st.lists(
    st.tuples(st.integers(0, 65534), WORDS, st.sampled_from(("#000000", "#e31a1c", "#FFFF99")), st.none() | WORDS),
    min_size=1,
    max_size=8,
    unique_by=lambda row: row[0],
)


@given(rows)
def test_a_table_survives_json(rows):
    table = ClassTable.of(rows)
    assert ClassTable.from_json(json.loads(json.dumps(table.to_json()))) == table
    assert [tuple(row) for row in rows] == [(c.value, c.name, c.color, c.code) for c in table]


@given(rows)
def test_nodata_is_never_a_class(rows):
    table = ClassTable.of(rows)
    assert table.nodata not in table.values
    assert (table.dtype, table.nodata) == (("uint8", 255) if max(table.values) <= 254 else ("uint16", 65535))


@pytest.mark.parametrize("n", [1, 2, 100, 255, 256, 1000])
def test_numbered_classes_have_colours_of_their_own(n):
    table = ClassTable.numbered(n)
    assert table.values == tuple(range(n))
    assert len({c.name for c in table}) == n
    if n <= 100:
        assert len({c.color for c in table}) == n


def test_a_colour_is_three_bytes():
    assert Class(1, "water", "#1f78b4").rgb == (0x1F, 0x78, 0xB4)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "must be there"),
        ([(1, "a", "#000000", None), (1, "b", "#000000", None)], "only once"),
        ([(-1, "a", "#000000", None)], "0..65534"),
        ([(65535, "a", "#000000", None)], "0..65534"),
        ([(1, "a", "red", None)], "'red'"),
        ([(1, "a", "#00000g", None)], "#rrggbb"),
    ],
)
def test_a_table_that_no_format_can_hold_is_refused(rows, words):
    with refused(words):
        ClassTable.of(rows)
