"""The small world that ships: scenes of glyphs whose every object is known, and a network trained on them."""

from pure_nb.glyphs.font import CLASSES
from pure_nb.glyphs.scenes import (
    CELL,
    COLOURS,
    GROUNDS,
    SIZE,
    GlyphObjects,
    GlyphScenes,
    Scene,
    SceneObject,
    Split,
    colour_name,
    draw_scene,
    glyph_images,
    normalise,
)
from pure_nb.images.data import MEAN, STD

__all__ = [
    "CELL",
    "CLASSES",
    "COLOURS",
    "GROUNDS",
    "MEAN",
    "SIZE",
    "STD",
    "GlyphObjects",
    "GlyphScenes",
    "Scene",
    "SceneObject",
    "Split",
    "colour_name",
    "draw_scene",
    "glyph_images",
    "normalise",
]
