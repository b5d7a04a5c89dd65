"""Reads the ImageNet weights of EfficientNet-Lite-PyTorch."""

from pathlib import Path

from torch import Tensor

from multibox.build import NETWORKS
from multibox.ssd.backbones.efficientnet_lite import STAGE_ENDS
from multibox.weights.publishers import EFFICIENTNET_LITE, Foreign
from multibox.weights.renaming import rename

EFFICIENTNET_LITE0 = "efficientnet-lite0"
"""Network name of a file that contains this trunk."""
NETWORK = "ssd300-efficientnet-lite0"

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def read_efficientnet_lite0(
    state: dict[str, Tensor], path: Path, _classes: tuple[str, ...]
) -> Foreign | None:
    """Returns the trunk in a state dict; None if it is another model.

    Raises:
        WeightsError: A tensor is missing, or there are unknown tensors.
    """
    if "_conv_stem.weight" not in state:
        return None
    classifier = ("_conv_head.", "_bn1.", "_fc.")
    trunk = {name: x for name, x in state.items() if not name.startswith(classifier)}
    names = {
        f"{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, ours in _layers().items()
        for kind in (_NORM if "_bn" in theirs else ("weight",))
    }
    tensors = rename(trunk, names, path)
    traits = NETWORKS[NETWORK].traits
    return Foreign(EFFICIENTNET_LITE, EFFICIENTNET_LITE0, (), tensors, traits, ())


def _layers() -> dict[str, str]:
    """Returns our names of the layers of EfficientNet-Lite-PyTorch, except for the classifier."""
    names = {"_conv_stem": "0.0.conv", "_bn0": "0.0.norm"}
    starts = (0, *(end + 1 for end in STAGE_ENDS[:-1]))
    for stage, (start, end) in enumerate(zip(starts, STAGE_ENDS, strict=True)):
        for block in range(start, end + 1):
            # The stem comes before block 0.
            ours = f"{stage}.{block - start + (stage == 0)}"
            parts = ("expand", "depthwise", "project")
            for number, part in enumerate(parts):
                if block or part != "expand":
                    names[f"_blocks.{block}._{part}_conv"] = f"{ours}.{part}.conv"
                    names[f"_blocks.{block}._bn{number}"] = f"{ours}.{part}.norm"
    return {theirs: f"backbone.stages.{ours}" for theirs, ours in names.items()}
