"""refimpl itself, in float32, as a candidate: `python own_candidate.py CASE -o FILE`."""

import sys

import numpy as np
from safetensors.numpy import save_file

from refimpl.oracle.case import read_case
from refimpl.oracle.steps import steps

case = read_case(sys.argv[1])
token_ids = case.inputs["token_ids"]
arrays = steps(case.model, token_ids, case.recipe, np.float32)
single = {
    k: v.astype(np.float32) if v.dtype.kind == "f" else v for k, v in arrays.items()
}
save_file({k: np.ascontiguousarray(v) for k, v in single.items()}, sys.argv[3])
