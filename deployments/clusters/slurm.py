"""A Dask cluster of Slurm jobs; prints the address for the parameter `cluster`. Needs `pip install dask-jobqueue`.

Queue, account and the like are a site's own: dask-jobqueue reads them from `~/.config/dask/jobqueue.yaml`.
"""

import argparse
import signal
from contextlib import suppress

from dask_jobqueue import SLURMCluster

from tiling.heap import ENVIRONMENT

if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--jobs", type=int, default=4, help="jobs, one process each")
    options.add_argument("--time", default="04:00:00", help="of each job")
    options.add_argument("--gpu", action="store_true", help="ask for one GPU a job")
    options.add_argument("--interface", help="network that the nodes share, such as ib0")
    told = options.parse_args()
    with (
        suppress(KeyboardInterrupt),
        SLURMCluster(
            # One task a process, which reads and writes in threads of its own.
            cores=1,
            job_cpu=3,
            processes=1,
            memory="16GiB",
            walltime=told.time,
            interface=told.interface,
            job_script_prologue=[f"export {name}={value}" for name, value in ENVIRONMENT.items()],
            job_extra_directives=["--gres=gpu:1"] if told.gpu else [],
        ) as cluster,
    ):
        cluster.scale(jobs=told.jobs)
        print(cluster.scheduler_address, flush=True)
        signal.pause()
