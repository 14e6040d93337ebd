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

ALL = [*itertools.product(*(("", *prefixes) for prefixes in KINDS.values()))]
ELSEWHERE = {"input:", "tokens:", "first:", "last:"}
EVERY = [kinds for kinds in ALL if not (kinds[1] and ELSEWHERE & {*kinds})]
GRAMMAR = (
    "before a name may stand one of 'input:', 'patches:', 'class:', then one of 'heads:', 'queries:', 'keys:', "
    "'values:', then one of 'tokens:', 'folded:', then one of 'first:', 'last:', and no others"
)


@pytest.mark.parametrize("prefixes", EVERY)
@pytest.mark.parametrize("name", ["", "layer4.1.conv2", "last", "inputs.patches"])
def test_what_is_parsed_is_written_as_it_was(prefixes: tuple[str, ...], name: str) -> None:
    layer = "".join(prefixes) + name
    assert Target.parse(layer) == Target(name, *prefixes)
    assert str(Target.parse(layer)) == layer
    assert Target.parse(layer).prefix == "".join(prefixes)


@pytest.mark.parametrize("layer", ["tokens:input:4", "last:tokens:4", "input:class:4", "input:input:4", "heads:keys:4"])
def test_prefixes_in_another_order_are_refused(layer: str) -> None:
    with pytest.raises(LayerError, match=re.escape(f"layer {layer!r}: {GRAMMAR}")):
        Target.parse(layer)


@pytest.mark.parametrize("layer", ["patch:4", "input:patch:4", "Input:4", "head:4", "dict:4", "basis:4"])
def test_prefixes_that_there_are_not_are_refused(layer: str) -> None:
    with pytest.raises(LayerError, match=re.escape(f"layer {layer!r}: {GRAMMAR}")):
        get_layer(plain(), layer)


@pytest.mark.parametrize("layer", ["input:heads:4", "class:keys:tokens:4", "queries:first:4", "values:last:4"])
def test_what_is_inside_attention_has_its_own_form(layer: str) -> None:
    with pytest.raises(
        LayerError, match=r"is \[B, T, C\] in every module; name it without '(input|tokens|first|last):'"
    ):
        Target.parse(layer)


def test_a_name_with_a_colon_of_its_own_is_found() -> None:
    model = plain()
    model.add_module("a:b", last := nn.ReLU())
    assert get_layer(model, "a:b") is get_layer(model, "input:a:b") is last
