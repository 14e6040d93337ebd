"""The list of mutants is in step with the package: whether tests find them is for tools/mutants.py to say."""

from __future__ import annotations

import ast
from collections import Counter

import mutants
import pytest
from small import ROOT


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_a_change_of_one_place(mutant: mutants.Mutant) -> None:
    texts = mutants.sources()
    module = mutants.place(mutant, texts)
    changed = texts[module].replace(mutant.old, mutant.new)
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(texts[module]))
    assert mutant.files
    for file in mutant.files:
        assert (ROOT / file).is_file()


def test_every_area_has_mutants() -> None:
    count = Counter(mutant.area for mutant in mutants.MUTANTS)
    assert set(count) == {
        "sweep", "store", "study", "blocks", "references", "circuits", "virtual", "relevance", "splitting",
        "fingerprints",
    }  # fmt: skip
    assert min(count.values()) >= 5
    assert len({mutant.name for mutant in mutants.MUTANTS}) == len(mutants.MUTANTS)


@pytest.mark.parametrize("text", ["def ", "no such text at all"])
def test_a_text_that_is_not_there_once_is_named(text: str) -> None:
    with pytest.raises(SystemExit, match="the text of 'sweep: mine' must be found once"):
        mutants.place(mutants.Mutant("sweep: mine", text, "", "sweep"), mutants.sources())
