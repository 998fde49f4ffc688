"""Numbers written for people."""


def format_bytes(count: float) -> str:
    """Write a number of bytes with three digits: 9.31 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:  # noqa: PLR2004 - decimal units
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
