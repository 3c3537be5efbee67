"""Tensors in tuples, named or not, and lists."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

Nest = TypeVar("Nest")


def each_tensor(nest: Nest, change: Callable[[Tensor], Tensor]) -> Nest:
    """The same nest, with every tensor changed and all else as it is."""
    if isinstance(nest, Tensor):
        return change(nest)  # pyright: ignore  a tensor for a tensor
    if not isinstance(nest, (tuple, list)):
        return nest
    parts = [each_tensor(part, change) for part in nest]
    return type(nest)(*parts) if hasattr(nest, "_fields") else type(nest)(parts)
