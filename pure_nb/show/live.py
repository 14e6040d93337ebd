"""The explorer in Jupyter: the program of the static pages, which asks the kernel for what is not there yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from threading import Event, Lock, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from pure_nb._imports import needed
from pure_nb.compute.bars import Bar, watched
from pure_nb.errors import ArgumentError, LayerError, PureError, sentence
from pure_nb.methods.virtual import CHOICES
from pure_nb.parameters import NEAREST
from pure_nb.show import ranking
from pure_nb.show.dropped import answer
from pure_nb.show.facts import METHODS, Atlas
from pure_nb.show.pictures import alone

with needed("show", "explorers need"):
    from anywidget import AnyWidget
    from traitlets import Bool, Dict, Enum, Int, Unicode

if TYPE_CHECKING:
    from pure_nb.study import Study

STATIC = Path(__file__).with_name("static") / "explorer"

FIRST = 18
"""Pictures of a neuron that are drawn first: most of the six that are seen of each part."""

TOGETHER = 0.1
"""Seconds: what is found out within them is sent together."""


class _Wanted(NamedTuple):
    """A neuron and the methods by which it is split; of these and its pictures, what the browser has already."""

    layer: str
    neuron: int
    methods: tuple[str, ...]
    has: tuple[str, ...] = ()
    pictures: bool = False


class _StopError(PureError):
    """Somebody does not want to wait any longer."""


class _ElsewhereError(Exception):
    """Somebody looks at another neuron by now."""


class _Seen(Atlas):
    """An atlas of pictures: what is told of parts is found out apart from them."""

    def data(self, channel: int) -> dict[str, Any]:
        """What is known without parts."""
        return self.references(channel)


class LiveExplorer(AnyWidget):  # type: ignore[misc]
    """The explorer of a study in Jupyter, as :func:`pure_nb.show.widgets.explore` makes it.

    The browser says what it wants to see, and a thread finds it out: first pictures, then parts, then the plane. Then
    come the neurons beside it, then the ranking. A picture that is dropped in is explained before all that, see
    :mod:`pure_nb.show.dropped`. The ranking gives way to all others, within its own thread: it has a copy of
    the network of its own, since what runs one puts hooks into it; so has the explorer, as cells may run the study's.

    Attributes
    ----------
    neuron, parts, method, beside, plane, whole, heatmap, layer
        What is shown: any can be set, observed and linked. ``parts`` are 0 for as many as the study chooses; ``beside``
        is another method to compare with, or ``""``; ``plane`` the method whose plane is shown, ``""`` for ``method``.
    """

    _esm = "".join((STATIC / name).read_text(encoding="utf-8") for name in ("explorer.js", "dropped.js"))
    _css = (STATIC / "explorer.css").read_text(encoding="utf-8")

    neuron = Int().tag(sync=True)
    parts = Enum((0, *CHOICES), 0).tag(sync=True)
    method = Enum(METHODS, METHODS[0]).tag(sync=True)
    beside = Enum(("", *METHODS), "").tag(sync=True)
    plane = Enum(("", *METHODS), "").tag(sync=True)
    whole = Bool().tag(sync=True)
    heatmap = Bool(True).tag(sync=True)
    layer = Unicode().tag(sync=True)
    _fixed = Dict().tag(sync=True)
    _listed = Dict().tag(sync=True)
    _doing = Dict().tag(sync=True)
    _closed = False

    def __init__(
        self, study: Study, channels: Sequence[int], start: int, *, rank: bool, split: bool, whole: bool, caption: str
    ) -> None:
        own = study.parameters.target
        layers = list(dict.fromkeys([own, *(shape.name for shape in study.survey())]))
        fixed = {
            "split": split,
            "caption": caption,
            "layers": layers,
            "methods": METHODS,
            "counts": [str(k) for k in CHOICES],
        }
        listed = {"layer": own, "neurons": list(channels), "of": study.shapes[0].channels}
        super().__init__(neuron=start, layer=own, whole=whole, _fixed=fixed, _listed=listed)
        self._study, self._rank, self._lists = study, rank, {own: list(channels)}
        self._of = lru_cache(8)(self._made)
        self._want: _Wanted | None = None
        self._why: dict[str, Any] | None = None
        self._ahead: deque[_Wanted] = deque()
        self._sent: set[_Wanted] = set()
        self._lock, self._stopped, self._thread = Lock(), Event(), cast("Thread | None", None)
        self._what, self._began, self._said = "", 0.0, 0.0
        try:
            self._own = ranking.apart(study)
        except Exception as problem:  # of anyone's network
            self._own, self._rank = study, False
            if rank:
                why = f"since the network can't be copied: {problem}"
                self._doing = {"what": f"study.neurons ranks them, and not this explorer, {why}"}
        self.on_msg(self._asked)

    def _asked(self, _: object, content: dict[str, Any], buffers: object) -> None:
        """Take in what the browser says; answered by the thread, so that the kernel can do something else."""
        if content.get("stop"):
            self._stopped.set()
            return
        with self._lock:
            if "why" in content:
                self._why = content["why"]
            else:
                methods, has = tuple(content["methods"]), tuple(content["has"])
                self._want = _Wanted(content["layer"], content["neuron"], methods, has, content["pictures"])
            if self._thread is None:
                self._thread = Thread(target=self._work, name=f"explorer {self._study.name}", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Stop what is computed, also the ranking below what is asked for in between."""
        self._closed = True
        super().close()

    # ---- in the thread ------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            self._serve()
            if self._rank and not self._closed:
                self._rank = False
                self._ranked()
            with self._lock:
                if self._want is None and self._why is None:
                    self._thread = None
                    return

    def _serve(self) -> None:
        """Answer until nothing is wanted, and nobody is beside it."""
        while True:
            self._explain()
            with self._lock:
                asked, self._want = self._want, None
                if self._closed or (asked is None and not self._ahead):
                    return
                wanted = asked or self._ahead.popleft()
            self._answer(wanted, ahead=asked is None)

    def _explain(self) -> None:
        """Explain the picture that was dropped in, if one was."""
        with self._lock:
            asked, self._why = self._why, None
        if asked is None or self._closed:
            return
        told: dict[str, Any] = {"number": asked["number"]}
        self._stopped.clear()
        self._begin(f"an explanation by {asked['layer']}")
        try:
            with watched(self._look):
                told |= answer(self._of(asked["layer"]).study, asked)
        except Exception as problem:  # shown, and not only printed where nobody looks
            told["problem"] = sentence(problem)
        self.send({"why": told})
        self._doing = {}

    def _answer(self, wanted: _Wanted, ahead: bool) -> None:
        def look(bar: Bar | None = None) -> None:
            if self._why is not None or (self._want is not None and self._want != wanted):
                raise _ElsewhereError
            self._look(bar)

        self._stopped.clear()
        try:
            with watched(look):
                if not ahead:
                    wanted = self._listing(wanted)
                for data in self._found(wanted, look):
                    self._tell(wanted, data)
            self._finished(wanted, ahead)
        except _ElsewhereError:
            with self._lock:
                if not ahead and self._want is None:  # a picture is explained first
                    self._want = wanted
        except Exception as problem:  # shown, and not only printed where nobody looks
            if isinstance(problem, _StopError):
                self._ahead.clear()
            if not ahead:
                self.send({"layer": wanted.layer, "neuron": wanted.neuron, "problem": sentence(problem)})
        self._doing = {}

    def _finished(self, wanted: _Wanted, ahead: bool) -> None:
        self._sent.add(wanted._replace(has=(), pictures=False))
        with self._lock:
            if self._want == wanted:  # asked for meanwhile
                self._want, ahead = None, False
        if not ahead:  # who is looked at next, most likely
            listed = self._lists[wanted.layer]
            place = listed.index(wanted.neuron)
            beside = [*listed[place + 1 : place + 2], *listed[max(0, place - 1) : place]]
            every = [_Wanted(wanted.layer, neuron, wanted.methods) for neuron in beside]
            self._ahead = deque(one for one in every if one not in self._sent)

    def _listing(self, wanted: _Wanted) -> _Wanted:
        """Have the neurons of the layer listed; the first of another layer instead of one that it does not have."""
        listed = self._lists.get(wanted.layer)
        if listed is None:
            self._begin(f"a pass over all images for {wanted.layer}")
            listed = ranking.living(self._of(wanted.layer).study)
            if not listed:
                raise LayerError(f"no image activates any channel of {wanted.layer!r}")
            self._lists[wanted.layer] = listed
        if self._listed["layer"] != wanted.layer:
            if wanted.neuron not in listed:
                self.neuron = listed[0]
                wanted = wanted._replace(neuron=listed[0])
            self._listed = {
                "layer": wanted.layer,
                "neurons": listed,
                "of": self._of(wanted.layer).study.shapes[0].channels,
            }
        if wanted.neuron not in listed:
            self._of(wanted.layer).study.require_channel(wanted.neuron)
            raise ArgumentError(f"no image activates channel {wanted.neuron}, so there is nothing to show")
        return wanted

    def _found(self, wanted: _Wanted, look: Callable[[], object]) -> Iterator[dict[str, Any]]:
        """All that is to be told of a neuron, in pieces: what is seen first, and what takes no time with it."""
        channel, methods = wanted.neuron, [name for name in wanted.methods if name not in wanted.has]
        if wanted.pictures and not methods:
            return  # and yet somebody looks at it
        made, said = self._of(wanted.layer), f"neuron {channel}"
        full = min(made.count, made.study.references.n)
        first, every = (partial(self._pictures, made, channel, count) for count in (FIRST, full))
        pictures, rest = [("pictures", first)] * (full > FIRST), [("all pictures", every)]
        if wanted.pictures:
            pictures, rest = [], []
        parts = [(f"parts by {name}", partial(made.split, channel, [name])) for name in methods]
        planes = [(f"the plane by {name}", partial(made.plane, channel, name)) for name in methods]
        known = made.study._is_there("layouts") and set(methods) <= {METHODS[0]}
        if known:  # which takes no time
            order = [*parts, *planes, *pictures, *rest]
        else:
            order = [*(pictures or rest), *parts, *(rest if pictures else ()), *planes]
        found: dict[str, Any] = {}
        since, shown = monotonic(), wanted.pictures
        for what, find in order:
            self._begin(f"{said}: {what}")
            look()
            for key, value in find().items():
                found[key] = found.get(key, {}) | value if isinstance(value, dict) else value
            shown |= "sample" in found
            if shown and not (known and monotonic() - since < TOGETHER):
                yield found
                found, since = {}, monotonic()
        yield found | {"done": methods}

    def _pictures(self, made: Atlas, channel: int, count: int) -> dict[str, Any]:
        """What is known of a neuron's strongest references, with their pictures as ``files``."""
        found, files = alone(_Seen(made.study, count=count), channel)
        return found | {"files": files}

    def _tell(self, wanted: _Wanted, data: dict[str, Any]) -> None:
        """Send data of a neuron, and its pictures."""
        files = data.pop("files", {})
        content = {"layer": wanted.layer, "neuron": wanted.neuron, "data": data, "files": list(files)}
        self.send(content, list(files.values()))

    def _made(self, layer: str) -> Atlas:
        own = layer == self._study.parameters.target
        return Atlas(self._own if own else self._own.replace(target=layer, lower=NEAREST), METHODS)

    def _ranked(self) -> None:
        """Rank the neurons, and give way to whoever looks at one."""

        def look(bar: Bar | None = None) -> None:
            self._look(bar)
            if self._want is not None or self._why is not None:
                before = self._what, self._began
                self._serve()
                self._what, self._began = before

        own = self._study.parameters.target
        try:
            with watched(look):
                for step in ranking.ranking(self._study, ranking.apart(self._own)):
                    self._begin(f"ranking of all neurons: {step}")
        except _StopError:
            self._doing = {"what": "the ranking was stopped; explore(study) goes on from there"}
            return
        except Exception as problem:  # shown, and not only printed where nobody looks
            self._doing = {"what": f"the neurons could not be ranked: {problem}"}
            return
        vars(self._own).update({step: vars(self._study)[step] for step in ranking.STEPS})
        self._lists[own] = ranking.ordered(self._study)
        if self._listed["layer"] == own:
            self._listed = {**self._listed, "neurons": self._lists[own]}
        self._doing = {}

    def _begin(self, what: str) -> None:
        self._what, self._began = what, monotonic()
        self._doing = {"what": what, "part": 0}

    def _look(self, bar: Bar | None = None) -> None:
        """Say how far it is, and raise if somebody does not want to wait."""
        if self._closed or self._stopped.is_set():
            self._stopped.clear()
            raise _StopError("stopped; choose another neuron, or this one again")
        now, part = monotonic(), bar.part if bar else 0.0
        if part and now - self._said > TOGETHER:  # each is a message to the browser
            self._said = now
            self._doing = {"what": self._what, "part": part, "left": (now - self._began) * (1 - part) / part}
