"""Requests, scores, allocations and targets; the one reader and writer of `scores.json`."""
