"""What a network computes in: float32, or half the bytes for more speed and fewer digits.

Half precision is torch's autocast: convolutions and products of matrices run in it, everything that is summed over
images or positions afterwards is in float32 or float64. It is for the passes over all images, which are most of the
work where there are many; the circuits of what they find are always in float32, since half the digits are too few to
split a channel into parts by them. The chapter *When it does not fit* shows by how much.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from pure_nb.errors import require_choice
from pure_nb.parameters import Precision


def autocast(device: str, precision: Precision) -> AbstractContextManager[object]:
    """Within it, networks compute in a given precision.

    Parameters
    ----------
    device
        Where they run.
    precision
        ``"float32"`` leaves them alone.

    Raises
    ------
    ArgumentError
        For another precision.
    """
    require_choice("precision", precision, Precision)
    if precision == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, getattr(torch, precision))
