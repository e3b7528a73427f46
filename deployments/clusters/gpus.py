"""A Dask cluster on this machine with one process a GPU; prints the address for the parameter `cluster`."""

import argparse
import os
import signal
from contextlib import suppress

from distributed import Nanny, Scheduler, SpecCluster

from tiling.heap import ENVIRONMENT


def visible_gpus() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--host", default="127.0.0.1", help="address to listen on")
    options.add_argument("--port", type=int, default=8786)
    options.add_argument("--memory", default="16GiB", help="of each process; Dask restarts one that takes more")
    told = options.parse_args()
    gpus = visible_gpus()
    if not gpus:
        options.error("no GPU is visible; use clusters/local.py")
    workers = {
        f"gpu-{name}": {
            "cls": Nanny,
            "options": {
                "host": told.host,
                # A task reads and writes in threads of its own.
                "nthreads": 1,
                "memory_limit": told.memory,
                "env": ENVIRONMENT | {"CUDA_VISIBLE_DEVICES": name},
            },
        }
        for name in gpus
    }
    scheduler = {
        "cls": Scheduler,
        "options": {"host": told.host, "port": told.port, "dashboard_address": f"{told.host}:0"},
    }
    with suppress(KeyboardInterrupt), SpecCluster(workers=workers, scheduler=scheduler) as cluster:
        print(cluster.scheduler_address, flush=True)
        signal.pause()
