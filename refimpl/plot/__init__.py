"""Figures by matplotlib: `pip install '.[plot]'`."""

from refimpl.plot.figures import allocation, coefficients, comparison, divergence, drift
from refimpl.plot.style import save

__all__ = ["allocation", "coefficients", "comparison", "divergence", "drift", "save"]
