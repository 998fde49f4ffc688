"""Merge methods: each says what its precision is, in one small file."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from gramfuse_shared.fusion.methods import linear, regmean
from gramfuse_shared.fusion.methods.method import Method

METHODS: Final[Mapping[str, Method]] = MappingProxyType(
    {method.name: method for method in (linear.Linear(), regmean.RegMean())}
)
"""Every method by its name in a recipe."""

__all__ = ["METHODS", "Method"]
