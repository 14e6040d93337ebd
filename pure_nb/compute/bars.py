"""Progress bars, all of one kind, and whoever else wants to know how far work is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm


class Bar(tqdm):  # type: ignore[type-arg]  # not to be subscripted where it runs
    """A bar that tells how far it is, shown or not, to whoever watches; see :func:`watched`."""

    done: float = 0
    """How many are done since it was made."""

    @property
    def part(self) -> float:
        """The part of all that is done since it was made; 0 where nobody knows how many there are."""
        return self.done / self.total if self.total else 0.0

    def update(self, n: float | None = 1) -> bool | None:
        """As tqdm's; what whoever watches raises stops the work, as Ctrl-C would."""
        self.done += n or 0
        if watching := _watching.get():
            watching(self)
        return super().update(n)


_watching: ContextVar[Callable[[Bar], object] | None] = ContextVar("watching", default=None)


@contextmanager
def watched(watching: Callable[[Bar], object]) -> Iterator[None]:
    """Within it, and in this thread, every bar calls ``watching`` with itself whenever some more is done.

    Of the bar are known ``done``, of ``total``, and the ``part`` that this is.
    """
    before = _watching.set(watching)
    try:
        yield
    finally:
        _watching.reset(before)


def progress_bar(*what: Any, shown: bool, **how: Any) -> Bar:
    """A bar of tqdm, shown if asked for and if the environment variable ``TQDM_DISABLE`` is not set.

    Parameters
    ----------
    *what, **how
        As tqdm takes them.
    shown
        Show it.
    """
    # tqdm looks at the environment only where it isn't told: "disable=False" would be a bar come what may.
    return Bar(*what, **how | ({} if shown else {"disable": True}))
