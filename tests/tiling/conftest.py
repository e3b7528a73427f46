"""One Hypothesis profile for all of these tests, and a stack of Dask workers to run blocks on."""

from collections.abc import Iterator
from concurrent.futures import Executor

import pytest
from hypothesis import HealthCheck, settings

# The database would keep failures of one machine; `derandomize` would always try the same examples.
settings.register_profile(
    "tiling", max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True
)
settings.load_profile("tiling")


@pytest.fixture(scope="session")
def workers(cluster) -> Iterator[Executor]:
    """The cluster as an executor, as the flows use it."""
    from distributed import Client

    with Client(cluster, set_as_default=False) as client:
        yield client.get_executor()
