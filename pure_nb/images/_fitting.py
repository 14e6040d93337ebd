"""Images as a network takes them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import torch
from torch import nn

from pure_nb._resting import frozen_eval
from pure_nb.errors import ImageError
from pure_nb.images.data import Images
from pure_nb.network import models
from pure_nb.network.layers import as_weights


def repeated(model: nn.Module, images: Images) -> Images:
    """Images for a network: grey ones with their channel three times, if it takes them so only."""
    model = models.unwrapped(model)  # one that can't be run is refused before it is
    with suppress(ImageError), frozen_eval(model), torch.no_grad():  # what can't be read is said when it is needed
        example = images.example[None].to(next((p.device for p in model.parameters()), "cpu"))
        for channels in (None, 3) if example.shape[1] == 1 else ():
            with suppress(Exception):  # whatever a network raises
                model(as_weights(model, example.expand(-1, channels or 1, -1, -1)))
                return replace(images, channels=channels) if channels else images
    return images
