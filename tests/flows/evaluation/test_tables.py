"""What the command line prints."""

from tests.flows.conftest import Cli
from tests.flows.evaluation.conftest import Pair


def test_the_table_names_every_class(cli: Cli, pair: Pair) -> None:
    _, out, _ = cli("evaluate", *pair[:2])
    firsts = [line.split()[0] for line in out.splitlines() if "─" not in line]
    assert firsts == ["class", "0", "1", "2", "3", "mean", "pixel", "3000", "outlines"]
    assert "3000 pixels have a truth and no prediction" in out
    assert "within 20 m" in out
