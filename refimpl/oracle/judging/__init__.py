"""Judging one step: error, tolerance and near ties, from arrays alone."""
