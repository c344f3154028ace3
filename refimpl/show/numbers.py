"""Numbers as text, in the digits that their errors deserve."""

from math import floor, isfinite, log10

UNKNOWN = "-"
LARGE = 5  # zeros that a rounded number may end with


def number(value: float, form: str = ".4g") -> str:
    """A number as text, a dash if it is unknown."""
    return format(value, form) if isfinite(value) else UNKNOWN


def measured(value: float, error: float, form: str = ".4g") -> str:
    """A number and its standard error, in the digits that the error deserves: its first two."""
    if not (isfinite(error) and error > 0):
        return number(value, form)
    decimals = 1 - floor(log10(error))
    if decimals < -LARGE:
        return f"{value:.3g} ± {error:.2g}"
    shown = max(decimals, 0)
    return f"{round(value, decimals):,.{shown}f} ± {round(error, decimals):,.{shown}f}"
