"""Shapes in annotations: ``Float[NDArray[np.float64], "n d"]``, in jaxtyping's notation.

Whoever looks at such an annotation, mypy, Sphinx or a reader's tool, gets the first part only. The tests put
jaxtyping's own in their place, and check every call; see ``tests/shapes.py``.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Annotated as Bool
    from typing import Annotated as Float
    from typing import Annotated as Int
else:

    class Bool:
        """The type of the array, without its shape."""

        def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
            return item[0]

    Float = Int = Bool

__all__ = ["Bool", "Float", "Int"]
