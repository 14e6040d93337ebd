"""Progress bars, all of one kind."""

from typing import Any

from tqdm import tqdm


def progress_bar(*what: Any, shown: bool, **how: Any) -> "tqdm[Any]":
    """A bar of tqdm, shown if asked for and if the environment variable ``TQDM_DISABLE`` is not set.

    Parameters
    ----------
    *what, **how
        As tqdm takes them.
    shown
        Show it.
    """
    # tqdm looks at the environment only where it isn't told: "disable=False" would be a bar come what may.
    return tqdm(*what, **how | ({} if shown else {"disable": True}))
