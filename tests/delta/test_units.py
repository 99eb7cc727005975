"""Sizes, shares and bits as people read them."""

from __future__ import annotations

import pytest

from rlsparse_store.delta.units import format_bits, format_bytes, format_percent


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_600, "1 MB"),
        (45_400_000, "45.4 MB"),
        (999_700_000_000, "0.9997 TB"),
        (2_345_600_000_000, "2.346 TB"),
    ],
)
def test_bytes_have_three_digits_at_every_unit(nbytes: int, text: str) -> None:
    assert format_bytes(nbytes) == text


@pytest.mark.parametrize(
    ("bits", "text"), [(4.4712, "4.47"), (999.4, "999"), (999.6, "1,000"), (5792.0, "5,792")]
)
def test_many_bits_are_no_power_of_ten(bits: float, text: str) -> None:
    assert format_bits(bits) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0 %"),
        (0.01234, "1.23 %"),
        (0.99987, "99.99 %"),
        (0.9999995, "99.99995 %"),
        (1, "100 %"),
    ],
)
def test_a_share_is_all_only_where_it_is(share: float, text: str) -> None:
    assert format_percent(share) == text
