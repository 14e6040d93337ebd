"""What a study takes on many machines: hours, bytes and money, from what one image or pair takes on one of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Step:
    """A long step, by what its units take: images, pairs of a channel and an image, or neurons.

    Attributes
    ----------
    name
        In the table.
    units
        How many there are.
    seconds
        That a worker takes for one.
    together
        Units of a task.
    read, moved
        Bytes of one that are read from where the images are, and that go to a worker or come from it.
    """

    name: str
    units: int
    seconds: float
    together: int
    read: float = 0.0
    moved: float = 0.0


@dataclass(frozen=True)
class Workers:
    """Who computes.

    Attributes
    ----------
    count
        How many work at once.
    cores
        That they have together, where they are fewer than the workers, such as on one machine; 0 for one each.
    price
        Of one of them for an hour.
    start
        Seconds that a core takes to get a worker going, once a run: its process, and what it imports.
    sent
        Bytes of the network and the list of images, which each gets once a run.
    task, scheduler
        Seconds that a task takes a worker beyond its units, and the scheduler, which has one at a time.
    storage, network
        Bytes a second of all workers together: that are read, and that go through the scheduler's machine.
    """

    count: int
    cores: int = 0
    price: float = 0.0
    start: float = 0.0
    sent: float = 0.0
    task: float = 0.05
    scheduler: float = 0.003
    storage: float = 1e9
    network: float = 1e9

    def turns(self, tasks: int) -> float:
        """How long so many equal tasks take, in units of the time that one takes a core.

        Where several workers share a core, all of them work at once, and each is the slower for it.
        """
        rounds, rest = divmod(tasks, self.count)
        cores = self.cores or self.count
        return rounds * max(1.0, self.count / cores) + (max(1.0, rest / cores) if rest else 0.0)


def costs(steps: Iterable[Step], workers: Workers) -> pd.DataFrame:
    """What some steps take, one after the other; whoever waits is paid, too.

    A step takes as many rounds as each worker gets tasks, or as long as the scheduler, the storage or the network need.
    Tasks are equal, and nothing else runs on the machines.

    Parameters
    ----------
    steps
        What is to be done.
    workers
        Who does it.

    Returns
    -------
    DataFrame
        By step, and for all in the row ``total``: ``tasks``; ``hours``; what ``limits`` it, as the last sentence has
        them; bytes ``read`` and ``moved``; and ``money``. The total also has the workers' start, and what each is sent
        once.

    Examples
    --------
    >>> costs([Step("sweep", units=36_000, seconds=1.0, together=1000)], Workers(4, price=2.0, task=0.0)).hours["sweep"]
    2.5
    """
    import pandas as pd  # late, see pure_nb._imports

    rows = {}
    for step in steps:
        tasks = ceil(step.units / step.together)
        read, moved = step.units * step.read, step.units * step.moved
        seconds = {
            "workers": workers.turns(tasks) * (min(step.together, step.units) * step.seconds + workers.task),
            "scheduler": tasks * workers.scheduler,
            "storage": read / workers.storage,
            "network": moved / workers.network,
        }
        limit = max(seconds, key=lambda name: seconds[name])
        hours = seconds[limit] / 3600
        rows[step.name] = (tasks, hours, limit, read, moved, hours * workers.count * workers.price)
    table = pd.DataFrame.from_dict(rows, "index", columns=["tasks", "hours", "limits", "read", "moved", "money"])
    sent, total = workers.count * workers.sent, table.drop(columns="limits").sum()
    waited = (workers.turns(workers.count) * workers.start + sent / workers.network) / 3600
    more = {"hours": waited, "moved": sent, "money": waited * workers.count * workers.price}
    table.loc["total"] = total.add(pd.Series(more), fill_value=0.0)
    return table.astype({"tasks": int})
