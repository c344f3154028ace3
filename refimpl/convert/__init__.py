"""Foreign formats of weights (GGUF, FP8, MXFP4), written once as an ordinary model folder."""
