"""The grammar of targets: what may stand before the name of a layer, and the one error that says so."""

from __future__ import annotations

import itertools
import re

import pytest
from small import plain
from torch import nn

from pure_nb.errors import LayerError
from pure_nb.network.layers import get_layer
from pure_nb.network.targets import KINDS, Target

EVERY = [*itertools.product(*(("", *prefixes) for prefixes in KINDS.values()))]
GRAMMAR = (
    "before a name may stand one of 'input:', 'patches:', 'class:', then one of 'tokens:', 'folded:', then one of "
    "'first:', 'last:', and no others"
)


@pytest.mark.parametrize("prefixes", EVERY)
@pytest.mark.parametrize("name", ["", "layer4.1.conv2", "last", "inputs.patches"])
def test_what_is_parsed_is_written_as_it_was(prefixes: tuple[str, str, str], name: str) -> None:
    layer = "".join(prefixes) + name
    assert Target.parse(layer) == Target(name, *prefixes)
    assert str(Target.parse(layer)) == layer
    assert Target.parse(layer).prefix == "".join(prefixes)


@pytest.mark.parametrize("layer", ["tokens:input:4", "last:tokens:4", "input:class:4", "input:input:4", "first:last:4"])
def test_prefixes_in_another_order_are_refused(layer: str) -> None:
    with pytest.raises(LayerError, match=re.escape(f"layer {layer!r}: {GRAMMAR}")):
        Target.parse(layer)


@pytest.mark.parametrize("layer", ["patch:4", "input:patch:4", "Input:4", "heads:4", "dict:4", "basis:4"])
def test_prefixes_that_there_are_not_are_refused(layer: str) -> None:
    with pytest.raises(LayerError, match=re.escape(f"layer {layer!r}: {GRAMMAR}")):
        get_layer(plain(), layer)


def test_a_name_with_a_colon_of_its_own_is_found() -> None:
    model = plain()
    model.add_module("a:b", last := nn.ReLU())
    assert get_layer(model, "a:b") is get_layer(model, "input:a:b") is last
