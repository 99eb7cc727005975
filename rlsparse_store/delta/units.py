"""Sizes and shares, as people read them."""

from __future__ import annotations

import math

__all__ = ["format_bytes", "format_percent"]


def format_bytes(nbytes: float) -> str:
    """Bytes with a decimal unit and three digits, as disks and the Hub count them.

    Example:
        >>> format_bytes(45_400_000)
        '45.4 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.4g} TB"


def format_percent(share: float) -> str:
    """A share with three significant digits. Only all is 100 %: close to it, what is missing shows.

    Example:
        >>> format_percent(0.01234), format_percent(0.99987), format_percent(1)
        ('1.23 %', '99.99 %', '100 %')
    """
    if 0.9995 <= share < 1:
        digits = -math.floor(math.log10(100 * (1 - share)))
        return f"{100 * share:.{digits}f} %"
    return "0 %" if share == 0 else f"{100 * share:.3g} %"
