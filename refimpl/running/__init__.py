"""Threads, settings, files and the facts of a run."""
