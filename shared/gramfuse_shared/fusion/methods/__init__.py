"""Merge methods: each says in one small file what its precision is, or what it adds to the base."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from gramfuse_shared.fusion.methods import dare, fisher, linear, refits, regmean, task_arithmetic, ties, wudi
from gramfuse_shared.fusion.methods.method import (
    DeltaMethod,
    DifferenceMethod,
    ElementMethod,
    Method,
    PrecisionMethod,
    RefitMethod,
)

METHODS: Final[Mapping[str, Method]] = MappingProxyType(
    {
        method.name: method
        for method in (
            linear.Linear(),
            regmean.RegMean(),
            fisher.FisherWeighted(),
            task_arithmetic.TASK_ARITHMETIC,
            ties.TIES,
            dare.DARE_LINEAR,
            dare.DARE_TIES,
            wudi.Wudi(),
            refits.HEAD,
            refits.REFIT,
            refits.CALIBRATION,
        )
    }
)
"""Every method by its name in a recipe."""

__all__ = [
    "METHODS",
    "DeltaMethod",
    "DifferenceMethod",
    "ElementMethod",
    "Method",
    "PrecisionMethod",
    "RefitMethod",
]
