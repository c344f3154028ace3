"""Mixers of tokens, one file per mechanism; `sizes` contains their facts."""
