"""The same tokens through transformers, where it is installed: never a dependency, a witness.

Only what transformers hands out by itself is compared: the residual stream before the first block,
after every block but the last, after the final norm, and the logits. No module of theirs is named
here, so every family works alike.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.model.model import Model
from refimpl.model.ops import Array

LIBRARIES = ("torch", "transformers")


def peer_points(num_blocks: int) -> tuple[str, ...]:
    """Trace points that transformers hands out, in the order of execution.

    Args:
        num_blocks: L of the model.

    Returns:
        Their names.

    Source:
        transformers (a peer): `output_hidden_states`, whose last entry comes after the final norm.

    Example:
        >>> peer_points(2)
        ('embed', 'blocks.0.resid_post', 'final_norm', 'logits')
    """
    between = (f"blocks.{i}.resid_post" for i in range(num_blocks - 1))
    return "embed", *between, "final_norm", "logits"


def peer_session(
    model: Model, dtype: npt.DTypeLike, device: str
) -> tuple[Callable[[Array], Mapping[str, Array]], str]:
    """Open a model with transformers: eager attention, no cache, no code of the model's own.

    In float64 its own requests for float32 give float64, as a witness has to be as exact as what
    it is held against.

    Args:
        model: From `read_model`; transformers reads its folder.
        dtype: Dtype of the computation, float32 or float64.
        device: "auto" (CUDA where there is one), "cuda" or "cpu".

    Returns:
        A function from token ids [B, S] to arrays by trace point, and what runs it, in words.

    Raises:
        RefimplError: Libraries that are not installed, no CUDA where it was asked for, or a folder
            that transformers does not read.

    Source:
        transformers (a peer).
    """
    torch, transformers = _libraries()
    cuda = bool(torch.cuda.is_available())
    if device == "cuda" and not cuda:
        raise RefimplError(
            "--device cuda: torch finds no CUDA device", "a GPU that torch can use", "use auto"
        )
    place = "cpu" if device == "cpu" or not cuda else "cuda"
    name = torch.cuda.get_device_name(0) if place == "cuda" else "CPU"
    theirs = _read(torch, transformers, model, dtype).to(place).eval()

    def run(token_ids: Array) -> Mapping[str, Array]:
        ids = torch.tensor(np.asarray(token_ids, np.int64), device=place)
        with torch.no_grad(), _casts(torch, dtype):
            out = theirs(input_ids=ids, use_cache=False, output_hidden_states=True)
        found = [*out.hidden_states, out.logits]
        points = peer_points(model.config.num_blocks)
        return {name: value.cpu().numpy() for name, value in zip(points, found, strict=True)}

    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return run, f"{versions}, {name}"


def _libraries() -> tuple[Any, Any]:
    """Both libraries, or the reason why not."""
    if missing := [name for name in LIBRARIES if find_spec(name) is None]:
        raise RefimplError(
            f"--against torch: {' and '.join(missing)} not installed",
            "torch and transformers, which refimpl never needs otherwise",
            "pip install torch transformers, or use --against onnxruntime",
        )
    torch, transformers = (import_module(name) for name in LIBRARIES)
    return torch, transformers


def _read(torch: Any, transformers: Any, model: Model, dtype: npt.DTypeLike) -> Any:
    """The model as transformers reads it."""
    beside = None if model.config_path is None else model.config_path.parent
    if beside is None or not beside.samefile(model.folder):
        raise RefimplError(
            f"--against torch: {model.path} has its config.json elsewhere",
            "a folder with config.json and the weights, which is what transformers reads",
            "put them into one folder, or use --against onnxruntime",
        )
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            model.folder,
            dtype=getattr(torch, np.dtype(dtype).name),
            attn_implementation="eager",
            local_files_only=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise RefimplError(
            f"--against torch: transformers does not read {model.folder} ({error})",
            "a folder that transformers reads",
            "use --against onnxruntime",
        ) from error
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()
    if np.dtype(dtype) != np.float64:
        return theirs
    with _casts(torch, dtype):  # its tables are made here
        lifted = type(theirs)(theirs.config)
    lifted.load_state_dict(theirs.state_dict())
    return lifted


@contextmanager
def _casts(torch: Any, dtype: npt.DTypeLike) -> Iterator[None]:
    """Let every request for float32 give float64, if that is the dtype; else change nothing."""
    if np.dtype(dtype) != np.float64:
        yield
        return
    kept = torch.float32, torch.float, torch.Tensor.float, torch.get_default_dtype()
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.float32, torch.float, torch.Tensor.float = kept[:3]
        torch.set_default_dtype(kept[3])
