"""The device, its precision, and streams: CUDA's where there is one, and those of a CPU, which do nothing."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lmseg_core import ModelError
from lmseg_core.device import apart, bring, device_of, peak_memory, precision_of

DEVICE = device_of("auto")
STREAMS = torch.get_device_module(DEVICE)


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(ModelError, match=r'device "gpu" is not known; use auto'):
        device_of("gpu")
    with pytest.raises(ModelError, match=r'precision "half" is not known; use auto, float32 or bfloat16'):
        precision_of("half", DEVICE)


def test_a_cpu_computes_as_it_stores() -> None:
    cpu = torch.device("cpu")
    assert device_of("cpu") == cpu
    assert precision_of("auto", cpu) == "float32"
    assert precision_of("bfloat16", cpu) == "bfloat16"
    values = torch.arange(6)
    assert bring(values, cpu).data_ptr() == values.data_ptr()
    assert peak_memory(cpu) == 0


def test_each_thread_has_one_stream_of_its_own() -> None:
    callers = STREAMS.current_stream(DEVICE)
    meet, lock = threading.Barrier(2, timeout=60), threading.Lock()

    def streams() -> list[object]:
        found: list[object] = []

        def make() -> torch.Tensor:
            found.append(STREAMS.current_stream(DEVICE))
            return torch.ones(3, device=DEVICE)

        meet.wait()  # both threads are there, so that neither runs for two
        # A CPU's current stream is that of all threads.
        with lock:
            assert all(apart(DEVICE, make).sum() == 3 for _ in range(3))
            assert STREAMS.current_stream(DEVICE) == callers
        return found

    with ThreadPoolExecutor(2) as pool:
        one, other = (task.result() for task in [pool.submit(streams), pool.submit(streams)])
    assert len(set(one)) == len(set(other)) == 1
    assert len({one[0], other[0], callers}) == 3


def test_a_failure_leaves_the_callers_stream() -> None:
    def fail() -> torch.Tensor:
        raise MemoryError("too much")

    callers = STREAMS.current_stream(DEVICE)
    with pytest.raises(MemoryError, match="too much"):
        apart(DEVICE, fail)
    assert STREAMS.current_stream(DEVICE) == callers


def test_what_threads_bring_and_make_side_by_side_is_whole() -> None:
    """On CUDA each step is asked for before the one before it is done, and memory goes from thread to thread."""

    def work(seed: int) -> bool:
        values = torch.full((64, 256, 256), seed, dtype=torch.uint8)
        for _ in range(20):
            placed = bring(values, DEVICE)
            made = apart(DEVICE, lambda placed=placed: placed.float().sqrt().square().round())  # type: ignore[misc]
            if not bool((made == seed).all()):
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
