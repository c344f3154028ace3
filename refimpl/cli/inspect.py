"""`refimpl inspect`: what is pruned in a model's file."""

from refimpl.cli import options as opt
from refimpl.cli.terminal import deliver
from refimpl.loading.checkpoint import read_model
from refimpl.pruning.copied_files import copies
from refimpl.pruning.inspection import inspect, inspection_document
from refimpl.show.pruning import inspection_table


def command(
    model: opt.ModelPath,
    *,
    config: opt.ConfigOption = None,
    download: opt.DownloadOption = False,
    as_json: opt.JsonOption = False,
    output: opt.OutputOption = None,
) -> None:
    """Print the sparsity of every block and linear, N:M patterns, dtypes and sizes of a model.

    Zeros are counted in the file, so zeros of the original model count, too.
    """
    opened = read_model(model, config, download=download)
    files = {f"the model's {path.name}": path for path in copies(opened).files.values()}
    opt.check_outputs(opened, files, output)
    inspection = inspect(opened)
    deliver(inspection_document(inspection), inspection_table(inspection), as_json, output)
