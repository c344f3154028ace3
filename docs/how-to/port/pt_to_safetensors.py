"""Joins the .pt files of a folder in one file: python pt_to_safetensors.py FOLDER OUT.safetensors.

Run it where the files were written. Each array gets the name of its file.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

tensors = {}
for path in sorted(Path(sys.argv[1]).rglob("*.pt")):
    value = torch.load(path, map_location="cpu", weights_only=True)
    for _ in range(3):  # the tensor itself, or in a dictionary or a tuple
        value = next(iter(value.values())) if isinstance(value, dict) else value
        value = value[0] if isinstance(value, (list, tuple)) else value
    tensors[path.stem] = value.contiguous()
save_file(tensors, sys.argv[2])
