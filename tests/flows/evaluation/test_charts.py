"""Charts show what is counted."""

from typing import Any

import numpy as np
import pytest

from flows.evaluation.charts import confusion_chart, reliability_chart
from lmseg_core.calibration import Reliability
from tiling import ClassTable


@pytest.mark.parametrize("classes", [1, 6, 40])
def test_confusion_is_darkest_where_most_is(classes: int) -> None:
    table = ClassTable.numbered(classes)
    shares: Any = np.eye(classes)
    if classes > 1:
        shares[-1] = np.nan
    chart = np.asarray(confusion_chart(shares, table)).astype(int)
    assert (chart == (33, 102, 172)).all(axis=-1).any()


def test_reliability_shows_both_errors() -> None:
    sure, modest = Reliability(), Reliability()
    sure.add(np.full(100, 0.95), np.arange(100) < 60)
    modest.add(np.full(100, 0.5), np.arange(100) < 90)
    colours = set(map(tuple, np.asarray(reliability_chart(sure, modest, 2.0)).reshape(-1, 3).tolist()))
    assert {(231, 160, 160), (159, 211, 168)} <= colours
