"""What every mixer works with: the place of its tokens, and the norms and linears of a block."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from refimpl.model import ops
from refimpl.model.config import BlockKind, Config
from refimpl.model.experts import Observer, unobserved
from refimpl.model.kernels import PLAIN, Kernels
from refimpl.model.mixers.mixer import NO_MIXER, Mixer
from refimpl.model.ops import Array, linear
from refimpl.model.state import KeysAndValues

Weights = Mapping[str, Array]


@dataclass(frozen=True)
class Place:
    """What a block needs besides its weights: token positions, kernels and an observer.

    Args:
        positions: Of the tokens, [S], from 0.
        bias: Added to attention scores: 0 or -inf, [S, S].
        rope: Cosines and sines, each [S, h_rot / 2]; None if the block does not rotate.
        kind: The facts of the block.
        ramps: From `alibi_ramps`, [H, S], or None.
        query_scale: Multiplies queries; a number, or one for each position, [S, 1].
        mixer: The facts of the block's mixer.
        kernels: How the costly steps are evaluated; results differ in rounding only.
        observe: Receives the name and value of every trace point; the block continues with the
            array that it returns.
        token_ids: [B, S], as of `State`; None until a block runs.
        kept: As of `State`: a block adds its own to those of earlier ones.
    """

    positions: Array
    bias: Array
    rope: tuple[Array, Array] | None
    kind: BlockKind
    ramps: Array | None = None
    query_scale: Array | float = 1.0
    mixer: Mixer = NO_MIXER
    kernels: Kernels = PLAIN
    observe: Observer = unobserved
    token_ids: Array | None = None
    kept: dict[int, KeysAndValues] = field(default_factory=dict)

    @property
    def interleaved(self) -> bool:
        """As in `attention.rotate`."""
        return self.kind.rope is not None and self.kind.rope.interleaved


def norm(x: Array, weights: Weights, role: str, config: Config, kernels: Kernels = PLAIN) -> Array:
    """Normalise over the last axis; a norm that the model does not have is the identity."""
    if f"{role}.weight" not in weights and role not in config.weightless_norms:
        return x
    gain = weights.get(f"{role}.weight", 1.0)
    if config.norm == "rms":
        return kernels.rms_norm(x, gain, config.norm_eps)
    return ops.layer_norm(x, gain, weights.get(f"{role}.bias", 0.0), config.norm_eps)


def project(x: Array, weights: Weights, name: str) -> Array:
    """Apply one linear, with its bias if the model has one."""
    return linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))
