"""A Dask cluster on this machine that several runs share; prints the address for the parameter `cluster`."""

import argparse
import signal
from contextlib import suppress

from distributed import LocalCluster

from tiling.heap import ENVIRONMENT

if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--workers", type=int, default=2, help="processes")
    options.add_argument("--port", type=int, default=8786)
    options.add_argument("--memory", default="4GiB", help="of each process; Dask restarts one that takes more")
    told = options.parse_args()
    with (
        suppress(KeyboardInterrupt),
        LocalCluster(
            host="127.0.0.1",
            scheduler_port=told.port,
            # None would still bind 8787 on every interface.
            dashboard_address="127.0.0.1:0",
            n_workers=told.workers,
            # A task reads and writes in threads of its own.
            threads_per_worker=1,
            memory_limit=told.memory,
            env=ENVIRONMENT,
        ) as cluster,
    ):
        print(cluster.scheduler_address, flush=True)
        signal.pause()
