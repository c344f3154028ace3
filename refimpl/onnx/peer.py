"""The same tokens through transformers, if it is installed; it is never a dependency.

Only arrays that transformers itself returns are compared: the residual stream before the first
block, after every block but the last, after the final norm, and the logits. No module of
transformers is named here, so every family works alike.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.loading.files.file_reading import reading
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.storage.file_system import open_file

LIBRARIES = ("torch", "transformers")


def peer_points(num_blocks: int) -> tuple[str, ...]:
    """Trace points that transformers returns: its last hidden state is after the final norm."""
    between = (f"blocks.{i}.resid_post" for i in range(num_blocks - 1))
    return "embed", *between, "final_norm", "logits"


def peer_session(
    model: Model, dtype: npt.DTypeLike, device: str
) -> tuple[Callable[[Array], Mapping[str, Array]], str]:
    """Open a model with transformers: a function from token ids [B, S] to arrays, and its runtime.

    Attention is eager, there is no cache, and no code of the model's own runs. In float64 casts to
    float32 inside transformers give float64, so that its error is as small as ours.
    """
    torch, transformers = _libraries()
    cuda = bool(torch.cuda.is_available())
    if device == "cuda" and not cuda:
        raise RefimplError(
            "--device cuda: torch finds no CUDA device",
            "a GPU that torch can use",
            "use --device auto",
        )
    place = "cpu" if device == "cpu" or not cuda else "cuda"
    name = torch.cuda.get_device_name(0) if place == "cuda" else "CPU"
    theirs = _read(torch, transformers, model, dtype).to(place).eval()

    def run(token_ids: Array) -> Mapping[str, Array]:
        ids = torch.tensor(np.asarray(token_ids, np.int64), device=place)
        with torch.no_grad(), _casts(torch, dtype):
            out = theirs(input_ids=ids, use_cache=False, output_hidden_states=True)
        arrays = [*out.hidden_states, out.logits]
        points = peer_points(model.config.num_blocks)
        return {name: array.cpu().numpy() for name, array in zip(points, arrays, strict=True)}

    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return run, f"{versions}, {name}"


def _libraries() -> tuple[Any, Any]:
    """The modules torch and transformers."""
    if missing := [name for name in LIBRARIES if find_spec(name) is None]:
        raise RefimplError(
            f"--against torch: {' and '.join(missing)} not installed",
            "torch and transformers, which refimpl needs for this comparison only",
            "pip install torch transformers, or use --against onnxruntime",
        )
    torch, transformers = (import_module(name) for name in LIBRARIES)
    return torch, transformers


def _read(torch: Any, transformers: Any, model: Model, dtype: npt.DTypeLike) -> Any:
    """The model as transformers reads it."""
    folder = None if model.config_path is None else model.config_path.parent
    if folder is None or not folder.samefile(model.folder):
        raise RefimplError(
            f"--against torch: the config.json of {model.path} is in another folder",
            "one folder with config.json and the weights, which transformers reads",
            "copy them into one folder, or use --against onnxruntime",
        )
    with reading(model.folder):
        for path in model.folder.iterdir():  # transformers opens those that it knows
            if path.exists() and not path.is_dir():
                open_file(path).close()
    shown = transformers.utils.logging.is_progress_bar_enabled()
    # torch has no grouped product of experts in float64
    mixture = {"experts_implementation": "eager"} if model.config.experts else {}
    transformers.utils.logging.disable_progress_bar()
    try:
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            model.folder,
            dtype=getattr(torch, np.dtype(dtype).name),
            attn_implementation="eager",
            local_files_only=True,
            **mixture,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise RefimplError(
            f"--against torch: transformers cannot read {model.folder} ({error})",
            "a folder that transformers can read",
            "use --against onnxruntime",
        ) from error
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()
    if np.dtype(dtype) != np.float64:
        return theirs
    with _casts(torch, dtype):  # it computes its tables here
        lifted = type(theirs)(theirs.config)
    lifted.load_state_dict(theirs.state_dict())
    return lifted


@contextmanager
def _casts(torch: Any, dtype: npt.DTypeLike) -> Iterator[None]:
    """Make every cast to float32 give float64, if that is the dtype; else change nothing."""
    if np.dtype(dtype) != np.float64:
        yield
        return
    before = torch.float32, torch.float, torch.Tensor.float, torch.get_default_dtype()
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.float32, torch.float, torch.Tensor.float = before[:3]
        torch.set_default_dtype(before[3])
