"""Mixers of tokens, one file per mechanism: its facts and its function."""
