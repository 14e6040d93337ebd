"""Which neurons are the most polysemantic, found out in the background while somebody looks at others."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from threading import Event, Lock, Thread
from time import sleep
from typing import TYPE_CHECKING

import numpy as np

from pure_nb._imports import needed
from pure_nb.compute.bars import Bar, watched

with needed("show", "explorers need"):
    import ipywidgets

if TYPE_CHECKING:
    from pure_nb.study import Study

STEPS = ("circuits", "virtual", "neurons")
"""What the ranking takes beyond the references."""


def is_known(study: Study) -> bool:
    """Whether the ranking is there, or takes no time."""
    return study._is_there("virtual")


def ordered(study: Study, *, wait: bool = False) -> list[int]:
    """The living neurons, the most polysemantic first; the strongest first if that is not known yet.

    Strong is a neuron that its references activate much, on average.

    Parameters
    ----------
    study
        Any study.
    wait
        Find out if it is not known.
    """
    if wait or is_known(study):
        return study.most_polysemantic(study.references.channels)
    strength = study.references.score.mean(axis=1)
    return [int(channel) for channel in np.argsort(-strength, kind="stable") if study.references.alive[channel]]


class Turns:
    """Two threads by turns: one that works long waits after each piece of its work while the other draws."""

    def __init__(self) -> None:
        self.turn, self.wanted = Lock(), Event()

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Within it the other one waits."""
        self.wanted.set()
        try:
            self.turn.acquire()
        finally:  # also where it is interrupted
            self.wanted.clear()
        try:
            yield
        finally:
            self.turn.release()

    def give_way(self) -> None:
        """Let whoever wants to draw do so; for whoever has the turn."""
        while self.wanted.is_set():
            self.turn.release()
            while self.wanted.is_set():  # until it has the turn: a lock goes to whoever comes first
                sleep(0.001)
            self.turn.acquire()


class _StopError(Exception):
    """Somebody does not want to wait any longer."""


class Progress:
    """The ranking of a study in a thread, with a bar and a button that stops it; what is finished by then is kept.

    The thread works with a copy of the network, since whoever draws puts hooks into the study's own.

    Attributes
    ----------
    box
        The bar, the button, and what there is to say.
    thread
        Runs from :meth:`start` on.

    Parameters
    ----------
    study
        Its references are known.
    turns
        Shared with whoever draws.
    ranked
        Is called with the living neurons when they are ranked, the most polysemantic first.
    """

    def __init__(self, study: Study, turns: Turns, ranked: Callable[[list[int]], object]) -> None:
        self.study, self.turns, self.ranked = study, turns, ranked
        self.stopped, self.step = Event(), 0
        self.bar = ipywidgets.FloatProgress(0, max=len(STEPS), description="ranking")
        self.button = ipywidgets.Button(description="Stop", tooltip="What is finished is kept")
        self.words = ipywidgets.HTML()
        self.box = ipywidgets.HBox([self.bar, self.button, self.words])
        self.button.on_click(lambda _: self.stopped.set())
        self.thread = Thread(target=self._run, name=f"ranking {study.name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        try:
            self.own = replace(
                self.study, model=deepcopy(self.study.model), run=replace(self.study.run, progress=False)
            )
        except Exception as problem:  # of anyone's network
            self._say(f"study.neurons ranks them, and not this explorer, since the network can't be copied: {problem}")
            return
        for name in {"_found", "_weights", "objects"} & set(vars(self.study)):
            self.own.__dict__[name] = vars(self.study)[name]
        self.thread.start()

    def _run(self) -> None:
        try:
            with self.turns.turn, watched(self._look):
                for step in STEPS:
                    # Not by its name: up to Python 3.11 a cached property has one lock for all studies, and whoever
                    # draws may wait for it while this waits for the drawing.
                    found = getattr(type(self.own), step).func(self.own)
                    self.own.__dict__[step] = self.study.__dict__[step] = found
                    self.step += 1
                    self._look()
            self.ranked(ordered(self.study))
        except _StopError:
            self._say("stopped; explore(study) goes on from there")
        except Exception as problem:  # shown, and not only printed where nobody looks
            self._say(f"the neurons could not be ranked: {problem}")
        else:
            self.box.layout.display = "none"

    def _look(self, bar: Bar | None = None) -> None:
        if self.stopped.is_set():
            raise _StopError
        done = self.step + (0.0 if bar is None else bar.part)
        if abs(done - self.bar.value) >= 0.01:  # each is a message to the browser
            self.bar.value = done
        self.turns.give_way()

    def _say(self, text: str) -> None:
        self.bar.layout.display = self.button.layout.display = "none"
        self.words.value = f"<small>{html.escape(text)}</small>"
