"""Many workers of Dask in one process, real ones: for tasks that sleep, see ``benchmarks/cluster.py``.

    python benchmarks/sleepers.py SCHEDULER_FILE COUNT

They are made one after the other by hand. A ``LocalCluster`` of as many tells all of them of each new one.
"""

from __future__ import annotations

import asyncio
import logging
import sys

import dask
from distributed import Worker

# What watches a process is not needed a thousand times.
QUIET = {"admin.system-monitor.interval": "1h", "admin.tick.interval": "1h", "worker.profile.enabled": False}


async def work(scheduler: str, count: int) -> None:
    how = {"nthreads": 1, "dashboard": False, "memory_limit": 0}
    workers = [await Worker(scheduler_file=scheduler, **how) for _ in range(count)]
    await asyncio.gather(*(worker.finished() for worker in workers))


if __name__ == "__main__":
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with dask.config.set({f"distributed.{name}": value for name, value in QUIET.items()}):
        asyncio.run(work(sys.argv[1], int(sys.argv[2])))
