"""Looks for NaN and infinity in bytes that are read for a digest anyway. Reads nothing itself, and needs no torch."""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final

from gramfuse_shared.contract.safetensors_header import DTYPE_BYTES, TensorEntry
from gramfuse_shared.errors import GramfuseError

_LEAST_BEHIND_TOP: Final[Mapping[str, int]] = MappingProxyType({"F32": 0x80, "BF16": 0x80, "F64": 0xF0})
"""Where the exponent's last bits lie in the byte below the top one: from which value on they are all ones."""

_TOPS_OF_ONES: Final[Mapping[str, bytes]] = MappingProxyType(
    {
        **dict.fromkeys(_LEAST_BEHIND_TOP, bytes((0x7F, 0xFF))),
        **dict.fromkeys(("F16", "F8_E5M2"), bytes((0x7C, 0x7D, 0x7E, 0x7F, 0xFC, 0xFD, 0xFE, 0xFF))),
        "F8_E4M3": bytes((0x7F, 0xFF)),  # no infinity, and one NaN of either sign
    }
)
"""Top bytes, in little-endian order the last ones, of values whose exponent may be all ones."""


class FiniteStream:
    """Sees the chunks of a safetensors file, one behind the other, of which some tensors have to be finite.

    Args:
        tensors: these tensors, and where they lie in the file.
        fault: the error of one that holds NaN or infinity, by its name.
    """

    def __init__(self, tensors: Iterable[TensorEntry], fault: Callable[[str], GramfuseError]) -> None:
        wanted = (entry for entry in tensors if entry.dtype in _TOPS_OF_ONES and entry.length)
        self._ahead = sorted(wanted, key=lambda entry: entry.start, reverse=True)
        self._fault = fault
        self._at = 0
        self._begun = b""  # of a value that a chunk's end divides

    def see(self, chunk: bytes) -> None:
        """Look at the next chunk.

        Raises:
            GramfuseError: a tensor's fault, if it holds NaN or infinity.
        """
        end = self._at + len(chunk)
        while self._ahead and self._ahead[-1].start < end:
            entry = self._ahead[-1]
            piece = self._begun + chunk[max(entry.start - self._at, 0) : entry.end - self._at]
            whole = len(piece) - len(piece) % DTYPE_BYTES[entry.dtype]
            if not is_finite(piece[:whole], entry.dtype):
                raise self._fault(entry.name)
            self._begun = piece[whole:]
            if entry.end > end:
                break
            self._ahead.pop()
            self._begun = b""
        self._at = end


def is_finite(values: bytes, dtype: str) -> bool:
    """Tell whether little-endian values of a floating-point dtype are neither NaN nor infinite.

    Both have an exponent of ones alone. Nearly no finite value shares the top byte of one that has, so a search for
    such bytes is all that is done of most files.
    """
    size, least = DTYPE_BYTES[dtype], _LEAST_BEHIND_TOP.get(dtype)
    tops = values[size - 1 :: size]
    for top in _TOPS_OF_ONES[dtype]:
        at = tops.find(top)
        while at >= 0:
            if least is None or values[at * size + size - 2] >= least:
                return False
            at = tops.find(top, at + 1)
    return True
