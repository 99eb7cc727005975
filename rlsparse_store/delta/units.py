"""Sizes and percentages for people."""

from __future__ import annotations

import math

__all__ = ["format_bits", "format_bytes", "format_percent"]


def format_bytes(nbytes: float) -> str:
    """Bytes in decimal units with three digits, as disks and the Hub show them.

    Example:
        >>> format_bytes(45_400_000)
        '45.4 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 999.5:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.4g} TB"


def format_bits(bits: float) -> str:
    """Bits per changed weight with three digits, or all before the point.

    Example:
        >>> format_bits(4.4712), format_bits(5792)
        ('4.47', '5,792')
    """
    return f"{bits:.3g}" if bits < 999.5 else f"{bits:,.0f}"


def format_percent(share: float) -> str:
    """A percentage with three significant digits, or with enough of them to differ from 100 %.

    Example:
        >>> format_percent(0.01234), format_percent(0.99987), format_percent(1)
        ('1.23 %', '99.99 %', '100 %')
    """
    if 0.9995 <= share < 1:
        digits = -math.floor(math.log10(100 * (1 - share)))
        return f"{100 * share:.{digits}f} %"
    return "0 %" if share == 0 else f"{100 * share:.3g} %"
