"""How often to kill, and the image and model of the command line's tests."""

import pytest

from tests.flows.conftest import raster_model, wide

__all__ = ["raster_model", "wide"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=4, help="Processes to kill in each test of tests/crash.")


@pytest.fixture(scope="session")
def kills(request: pytest.FixtureRequest) -> int:
    # Only known where pytest was told of this folder.
    return int(request.config.getoption("--kills", default=4))
