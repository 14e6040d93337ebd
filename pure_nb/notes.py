"""A person's own names of parts, and notes on them, in a small text file that they may edit as well.

The file is TOML, beside the study's own: of ``mine.toml`` it is ``mine.notes.toml``. Of a study without a file, or of
one that ships, it is ``notes.toml`` in the study's folder of results, and of a published one a file of its own there.
A part is known by its letter, which may be
another's when the study is computed otherwise; so a note keeps the strongest images of what it was of, and is not shown
where most of them are not any more.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pure_nb.compute.store import write_text
from pure_nb.errors import ArgumentError, StudyError, StudyWarning
from pure_nb.methods.virtual import WHOLE, part_name

if TYPE_CHECKING:
    import pandas as pd

    from pure_nb.study import Study

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

STRONGEST = 6
"""Images by which a note knows what it was of."""

Place = tuple[int, str]
"""A channel, and a part of it or :data:`WHOLE`."""

HEAD = "# Names and notes by hand: pure-nb note writes them, and so may you. Comments are lost when it does.\n"


@dataclass(frozen=True)
class Note:
    """What a person calls a neuron or a part of it, what they note, and the images that it is of; () are any."""

    name: str = ""
    text: str = ""
    images: tuple[int, ...] = ()


class Notes:
    """The names and notes by hand on the neurons of a study's target layer: :attr:`pure_nb.Study.notes`.

    Examples
    --------
    >>> study.notes.write("3.A", "umbrella")
    >>> study.notes.of(3, "A").name
    'umbrella'
    >>> study.notes.remove("3.A")
    """

    def __init__(self, study: Study) -> None:
        self._study = study

    @property
    def path(self) -> Path | None:
        """The file; None of a study that has neither a file nor a store."""
        store = self._study.store
        return self._study.notes_file or (store.folder / "notes.toml" if store else None)

    def write(self, place: str, name: str = "", text: str = "") -> None:
        """Name a part, or note something on it; what is not given stays as it was.

        Parameters
        ----------
        place
            A neuron, as ``"22"``, or a part of one, as ``"22.B"``.
        name, text
            A line each.

        Raises
        ------
        ArgumentError
            If there is no such part, or nothing to write.
        """
        name, text = name.strip(), text.strip()
        if not (name or text) or not (name + text).isprintable():
            raise ArgumentError(f"a note on {place} needs a name or a text, a line each, got {name!r} and {text!r}")
        where, every = _place(place), self._read()
        own = every.setdefault(self._layer, {})
        images = tuple(self._parts(*where)[where[1]][:STRONGEST])
        before = own.get(where, Note())
        if self._misfit(where, before):
            before = Note()  # it was of something else
        own[where] = Note(name or before.name, text or before.text, images)
        self._save(every)

    def remove(self, place: str) -> None:
        """Remove the name and the note on a part."""
        where, every = _place(place), self._read()
        if every.get(self._layer, {}).pop(where, None) is None:
            raise ArgumentError(f"{str(self.path)!r} has no note on {place} of {self._layer!r}")
        self._save(every)

    def of(self, channel: int, part: str = WHOLE) -> Note:
        """The note on a part, "A", "B" ..., or on the whole neuron; an empty one where there is none that fits."""
        return self.fitting().get((channel, part), Note())

    def fitting(self) -> dict[Place, Note]:
        """All that are of what is there now, by channel and part; a warning names the others."""
        own = self._read().get(self._layer, {})
        other = [where for where, note in own.items() if self._misfit(where, note)]
        if other:
            warnings.warn(
                f"{', '.join(map(_written, other))} of {self._layer!r}: the names and notes by hand do not fit any "
                "more and are not shown; pure-nb note tells why",
                StudyWarning,
                stacklevel=2,
            )
        return {where: note for where, note in own.items() if where not in other}

    def table(self) -> pd.DataFrame:
        """All of them: ``channel``, ``part``, ``name``, ``text``, and as ``misfit`` why one is not shown."""
        import pandas as pd  # late, see pure_nb._imports

        own = self._read().get(self._layer, {})
        rows = [(*where, note.name, note.text, self._misfit(where, note)) for where, note in own.items()]
        return pd.DataFrame(rows, columns=["channel", "part", "name", "text", "misfit"])

    def beside(self, table: pd.DataFrame) -> pd.DataFrame:
        """A table of neurons, with a column ``by_hand`` of what they and their parts are called, if any is."""
        own: dict[int, list[str]] = {}
        for (channel, part), note in self.fitting().items():
            own.setdefault(channel, []).append(f"{'' if part == WHOLE else f'{part} '}{note.name or note.text}")
        return table.assign(by_hand=[", ".join(own.get(one, [])) for one in table["channel"]]) if own else table

    @property
    def _layer(self) -> str:
        return self._study.parameters.target

    def _parts(self, channel: int, needed: str) -> dict[str, list[int]]:
        """The images of a neuron and of each of its parts, strongest first; raises if it lacks a part."""
        neuron = self._study.neuron(channel)
        found = {WHOLE: neuron.sample.tolist()}
        for part in range(neuron.virtual.k) if neuron.virtual.k > 1 else ():
            found[part_name(part)] = neuron.sample[neuron.members(part)].tolist()
        if needed not in found:
            parts = f"its parts are {', '.join(list(found)[1:])}" if len(found) > 1 else "it is left whole"
            raise ArgumentError(f"neuron {channel} has no part {needed}; {parts}")
        return found

    def _misfit(self, where: Place, note: Note) -> str:
        """Why a note is not of what is there now; "" if it is."""
        try:
            parts = self._parts(*where)
        except ArgumentError as problem:
            return str(problem)
        shared = {part: len({*images} & {*note.images}) for part, images in parts.items()}
        if not note.images or 2 * shared.pop(where[1]) > len(note.images):
            return ""
        most = max(shared, key=lambda part: (shared[part], part != WHOLE))
        if not shared[most]:
            return f"none of its images is a reference of neuron {where[0]} any more"
        return f"{shared[most]} of the {len(note.images)} images that it is of are in {_written((where[0], most))} now"

    def _read(self) -> dict[str, dict[Place, Note]]:
        """By layer and place."""
        if self.path is None or not self.path.is_file():
            return {}
        try:
            tables = tomllib.loads(self.path.read_text(encoding="utf-8"))
            return {layer: {_place(where): _note(told) for where, told in own.items()} for layer, own in tables.items()}
        except (
            OSError,
            tomllib.TOMLDecodeError,
            UnicodeDecodeError,
            AttributeError,
            TypeError,
            StudyError,
            ArgumentError,
        ) as problem:
            raise StudyError(
                f"{str(self.path)!r} can't be read as notes: {problem}; expected for each layer a table, as "
                '["layer4"], of lines such as "22.B" = "umbrella"'
            ) from problem

    def _save(self, every: dict[str, dict[Place, Note]]) -> None:
        if self.path is None:
            raise StudyError(f"the study {self._study.name!r} has no place for notes: give it a store")
        text = HEAD
        for layer, own in every.items():
            text += f"\n[{_quoted(layer)}]\n" if own else ""
            for where, note in own.items():
                told = ", ".join(f"{key} = {_quoted(value)}" for key, value in asdict(note).items() if value)
                text += f"{_quoted(_written(where))} = {{ {told} }}\n"
        write_text(self.path, text)


def _place(text: str) -> Place:
    """A neuron and a part of it, as a user writes them."""
    found = re.fullmatch(r"(\d{1,9})(?:\.([A-Za-z]+))?", text.strip(), re.ASCII)
    if not found:
        raise ArgumentError(f"can't read {text!r}; expected a neuron such as 22, or a part of one such as 22.B")
    return int(found[1]), found[2].upper() if found[2] else WHOLE


def _written(where: Place) -> str:
    return str(where[0]) if where[1] == WHOLE else f"{where[0]}.{where[1]}"


def _note(told: Any) -> Note:
    """A note as a file has it: a table, or the name alone."""
    note = Note(told) if isinstance(told, str) else Note(**told)
    texts, images = (note.name, note.text), note.images
    if not all(isinstance(own, str) for own in texts) or not all(isinstance(own, int) for own in images):
        raise StudyError(f"{told!r} is no note")
    return Note(*texts, tuple(images))


def _quoted(value: str | tuple[int, ...]) -> str:
    """As TOML writes it, whose strings are those of JSON but for one sign."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
