"""Passes, arithmetic, memory and time of scoring, predicted without the scoring."""
