"""Rows of bytes that say what is known of a block."""

import numpy as np

from tiling.record import STEPS, is_whole, make_row, read_rows, row_type

KIND = row_type(classes=2, maps=3)
SECONDS = [0.5 * i for i in range(len(STEPS))]
ROW = make_row(KIND, bytes(range(32)), [1, 2, 3, 4, 5], [6, 7, 2**32 - 1], SECONDS)


def test_a_row_gives_back_what_it_was_made_from():
    (row,) = read_rows(KIND, [ROW])
    assert row["digest"].tobytes() == bytes(range(32))
    assert row["counts"].tolist() == [1, 2, 3, 4, 5]
    assert row["files"].tolist() == [6, 7, 2**32 - 1]
    assert row["seconds"].tolist() == SECONDS
    assert is_whole(row)


def test_a_row_has_no_gaps_so_that_equal_blocks_have_equal_bytes():
    assert KIND.itemsize == len(ROW) == 32 + 5 * 8 + 3 * 4 + 4 + len(STEPS) * 8
    later = make_row(KIND, bytes(range(32)), [1, 2, 3, 4, 5], [6, 7, 2**32 - 1], [9.0] * len(STEPS))
    assert later[: -8 * len(STEPS) - 4] == ROW[: -8 * len(STEPS) - 4]


def test_missing_and_short_rows_are_blank_and_not_whole():
    rows = read_rows(KIND, [None, ROW, ROW[:-1], b"", ROW + b"\0"])
    assert [row["counts"].tolist() == [1, 2, 3, 4, 5] for row in rows] == [False, True, False, False, False]
    blank = bytes(KIND.itemsize)
    assert [row.tobytes() == blank for row in rows] == [True, False, True, True, True]
    changed = bytearray(ROW)
    changed[40] ^= 1
    assert not is_whole(read_rows(KIND, [bytes(changed)])[0])
    assert np.array_equal(read_rows(KIND, []), np.zeros(0, KIND))
