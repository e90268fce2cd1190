"""Numbers of things, in words."""

from __future__ import annotations


def counted(number: int, what: str, many: str = "") -> str:
    """A number and what is counted, in the plural but for one. many: the plural, where it is not just with an s."""
    return f"{number:,} {what if number == 1 else many or f'{what}s'}"


def shots_of(number: int | str) -> str:
    """A number of shots, or all of them."""
    return f"{number} {'shot' if number == 1 else 'shots'}"
