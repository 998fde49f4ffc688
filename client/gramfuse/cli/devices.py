"""Where a command computes, as its option takes it."""

from enum import StrEnum


class Device(StrEnum):
    """Where to compute; auto is CUDA where there is one."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
