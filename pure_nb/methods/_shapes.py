"""Shapes in annotations: ``Float[NDArray[np.float64], "n d"]``, in jaxtyping's notation.

A type checker reads the first part only, and so does whoever runs the package. The tests put jaxtyping's own in their
place, and check every call; see ``tests/shapes.py``.
"""

from typing import Annotated as Bool
from typing import Annotated as Float
from typing import Annotated as Int

__all__ = ["Bool", "Float", "Int"]
