"""Saves every tensor that llama.cpp computes: python llama_cpp_trace.py MODEL.gguf IDS.npy OUT.npz.

llama.cpp calls a function for each tensor (`cb_eval`). A name that comes again is kept twice: the
first tensor under the name, the last of each operation under `name:operation`.
"""

import ctypes
import sys
from pathlib import Path
from typing import Any, ClassVar

import llama_cpp_py_sync
import numpy as np
from llama_cpp_py_sync import _cffi_bindings as bindings

llama, ffi = bindings.get_lib(), bindings.get_ffi()
ggml = ctypes.CDLL(str(next(Path(llama_cpp_py_sync.__file__).parent.glob("libggml-base*"))))
ggml.ggml_get_name.restype = ggml.ggml_op_desc.restype = ctypes.c_char_p
ggml.ggml_nbytes.restype, tensors = ctypes.c_size_t, {}


class Tensor(ctypes.Structure):
    """How ggml_tensor begins."""

    _fields_: ClassVar[list[Any]] = [
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("sizes", ctypes.c_int64 * 4),
        ("strides", ctypes.c_size_t * 4),
    ]


@ffi.callback(ffi.typeof(ffi.new("struct llama_context_params *").cb_eval))
def keep(tensor: Any, ask: bool, _: Any) -> bool:
    """Copy a tensor of float32 out of llama.cpp's memory."""
    at = ctypes.c_void_p(int(ffi.cast("uintptr_t", tensor)))
    head = Tensor.from_address(at.value)
    if not ask and head.type == 0:  # float32
        content = np.empty(ggml.ggml_nbytes(at), np.uint8)
        address, size = ctypes.c_void_p(content.ctypes.data), ctypes.c_size_t(content.size)
        ggml.ggml_backend_tensor_get(at, address, ctypes.c_size_t(0), size)
        numbers = content.view(np.float32)
        array = np.lib.stride_tricks.as_strided(numbers, head.sizes[::-1], head.strides[::-1])
        name, operation = ggml.ggml_get_name(at).decode(), ggml.ggml_op_desc(at).decode()
        tensors.setdefault(name, array.copy())
        tensors[f"{name}:{operation}"] = array.copy()
    return True


path, ids, out = sys.argv[1], np.load(sys.argv[2]).ravel(), sys.argv[3]
llama.llama_backend_init()
model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
settings = llama.llama_context_default_params()
settings.n_ctx = settings.n_batch = settings.n_ubatch = max(512, len(ids))
settings.type_k = settings.type_v = settings.flash_attn_type = 0  # a cache in float32
settings.cb_eval = keep
context = llama.llama_init_from_model(model, settings)
batch = llama.llama_batch_init(len(ids), 0, 1)
batch.n_tokens = len(ids)
for i, token in enumerate(ids):  # the logits of every token
    batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = int(token), i, 1, 1
    batch.seq_id[i][0] = 0
assert llama.llama_decode(context, batch) == 0
np.savez(out, token_ids=ids, **tensors)
