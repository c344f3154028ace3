"""The experiment run by onnxruntime, from the same noise as NumPy's."""

from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt

from refimpl.arguments import Device
from refimpl.errors import RefimplError
from refimpl.method.perturbation import Noise, Perturbation, noise
from refimpl.model.config import Config
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.onnx.candidate import recorded_session
from refimpl.onnx.recording import model_graph as graphs
from refimpl.onnx.session import check_device
from refimpl.running.provenance import Runtime
from refimpl.running.settings import Resources, require_memory
from refimpl.scoring.experiment import dense_squares, groups
from refimpl.scoring.measurements import Address, Experiment, Measurements, PruneBlock, addresses

OUTPUTS = ("drift", "alignment", "ratio", "left_out", "sinks", "mean_square")


def on_onnxruntime(plan: Perturbation, device: Device = "auto") -> Experiment:
    """The experiment by onnxruntime, for `score`; refuses a plan or a device it cannot use."""
    graphs.only_noise(plan)
    check_device(device)
    return partial(_experiment, device)


def state_bytes(config: Config, length: int, dtype: npt.DTypeLike) -> int:
    """Bytes of one state of S tokens at its largest step, which a runtime holds as a whole."""
    hidden, width, heads = config.intermediate_size, config.state_size, config.num_attention_heads
    step = max(3 * hidden, 2 * heads * length) + 4 * width
    return length * (step * np.dtype(dtype).itemsize + 3 * width * np.dtype(np.float64).itemsize)


def _experiment(
    device: Device,
    model: Model,
    ids: Array,
    plan: Perturbation,
    resources: Resources,
    prune_block: PruneBlock | None,
    *,
    divergence: bool,
) -> Measurements:
    """`scoring.experiment.experiment`, without what only the pruning perturbation needs."""
    config, (count, length), plan = model.config, ids.shape, graphs.only_noise(plan)
    dtype, memory = resources.dtype, resources.memory
    each = state_bytes(config, length, dtype)
    size = f"2 states of {length} tokens in all steps of a block"
    require_memory(memory, 2 * each, "one experiment", size, "a shorter --seq-len")
    states = addresses(count, config.num_blocks, plan)
    # `groups` counts a sequence's clean state twice; a run holds it once.
    parts = [
        sorted((a for (a,) in part), key=lambda a: a.block)
        for sequence in range(count)
        for part in groups([(a,) for a in states if a.sequence == sequence], memory // each + 1)
    ]
    fixed = length if device == "webgpu" else None  # as `validate` has it
    recording = graphs.Recording(model, dtype, length=fixed)
    graphs.experiment_graph(recording, plan)
    session = recorded_session(recording, device, resources.workers.threads)
    costs = [config.num_blocks + sum(config.num_blocks - a.block for a in part) for part in parts]
    resources.total = resources.done + sum(costs) + config.num_blocks * count
    runtime = Runtime("onnxruntime", session.device, session.versions)
    found = Measurements.empty(plan, count, config.num_blocks, runtime=runtime)
    counted = set[int]()
    for part, cost in zip(parts, costs, strict=True):
        sequence = part[0].sequence
        result = session.run(_inputs(ids, part, plan, config.hidden_size), OUTPUTS)
        if not np.isfinite(result["mean_square"]).all():
            name = np.dtype(dtype).name
            raise RefimplError(
                f"a number beyond the range of {name} (sequence {sequence}, {session.device})",
                f"weights and states within the range of {name}",
                "use --dtype float64, or a smaller --eta; else the weights are damaged",
            )
        for i, a in enumerate(part):
            found.drift[a.index] = result["drift"][i]
            found.alignment[a.index] = result["alignment"][i]
            found.ratios[a.index] = result["ratio"][i]
            found.left_out[a.variant, a.block] += result["left_out"][i]
        if sequence not in counted:
            perturbed = sorted({a.block for a in states if a.sequence == sequence})
            found.sinks[perturbed] += result["sinks"][perturbed]
        counted.add(sequence)
        resources.tick(cost)
    return replace(found, squares=dense_squares(model, ids, resources))


def _inputs(ids: Array, part: list[Address], plan: Noise, width: int) -> dict[str, Array]:
    """The graph's inputs for some states of one sequence."""
    sequence, shape = part[0].sequence, (ids.shape[1], width)
    drawn = {  # one draw for all etas
        (block, draw): noise(plan.seed, sequence, block, draw, shape)
        for block, draw in {(a.block, a.draw) for a in part}
    }
    return graphs.experiment_inputs(
        ids[sequence : sequence + 1].astype(np.int64),
        [a.block for a in part],
        [plan.eta[a.variant] for a in part],
        np.stack([drawn[a.block, a.draw] for a in part]),
    )
