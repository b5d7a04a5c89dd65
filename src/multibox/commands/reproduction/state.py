"""What lies on the disk already, and what is missing, for `reproduce`."""

from pathlib import Path
from typing import Literal, NamedTuple

import safetensors.torch

from multibox.build import new_network
from multibox.commands.reproduction.look_alike import OBJECTS, draw_look_alike
from multibox.commands.reproduction.targets import Target
from multibox.config import Config, differences
from multibox.data.formats.layouts import open_dataset
from multibox.download.catalogue import SOURCES, WEIGHTS
from multibox.download.stored_datasets import missing_archives
from multibox.download.stored_weights import weights_folder
from multibox.errors import DataError
from multibox.storage.checkpoint import steps as saved_steps
from multibox.storage.run_folder import new_file, read_config
from multibox.weights.files import make_header

_DRAWN_WEIGHTS = "initial.safetensors"
_LICENCE = "Apache-2.0; random numbers"


class Place(NamedTuple):
    """Where a reproduction keeps its files, and how it runs.

    Attributes:
        data: The folder of all datasets and of the weights.
        out: The folder of all runs.
        seeds: The seeds.
        device: The device of the networks.
        workers: Number of processes that prepare images.
        pipeline: Where images are prepared.
    """

    data: Path
    out: Path
    seeds: tuple[int, ...] = (0,)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: int = -1
    pipeline: Literal["cpu", "cuda"] = "cpu"

    def run(self, seed: int) -> Path:
        """Returns the folder of a run."""
        return self.out / f"seed-{seed}"

    def config(self, target: Target, seed: int) -> Config:
        """Returns the configuration of a run."""
        values = {"device": self.device, "workers": self.workers, "pipeline": self.pipeline}
        return target.config().override(values | {"seed": seed})


class Download(NamedTuple):
    """Something to download.

    Attributes:
        name: Its name for `download`.
        size: Number of bytes of the missing files.
        licence: Terms of use.
    """

    name: str
    size: int
    licence: str


def missing(target: Target, place: Place) -> list[Download]:
    """Returns what has to be downloaded. Partial downloads count as missing.

    A dataset is there if its folder has all splits, because `download` moves the lists of images
    into place last. Weights are not needed any more if every run has a checkpoint.
    """
    found = []
    if target.datasets and not has_splits(target, place.data):
        for name in target.datasets:
            size = sum(archive.size for archive in missing_archives(SOURCES[name], place.data))
            if size:
                found.append(Download(name, size, SOURCES[name].licence))
    begun = all(saved_steps(place.run(seed) / "checkpoints") for seed in place.seeds)
    if target.weights and not begun and not initial_weights(target, place.data).is_file():
        weights = WEIGHTS[target.weights]
        found.append(Download(target.weights, weights.published.size, weights.licence))
    return found


def has_splits(target: Target, data: Path) -> bool:
    """Returns whether the dataset's folder has all splits of a target."""
    try:
        return set(target.images) <= set(open_dataset(data / target.data).splits)
    except DataError:
        return False


def initial_weights(target: Target, data: Path) -> Path:
    """Returns the file of weights that the runs start from, which may not exist.

    Weights that `multibox download` stored for all verbs are used, too.
    """
    if not target.weights:
        return data / _DRAWN_WEIGHTS
    name = WEIGHTS[target.weights].stored_name
    stored = weights_folder() / name
    return stored if stored.is_file() and not (data / name).is_file() else data / name


def draw(target: Target, data: Path, *, scale: int) -> None:
    """Draws the dataset of a rehearsal, and writes random weights in place of ImageNet's.

    Raises:
        StorageError: The folder has other files, or cannot be written.
    """
    draw_look_alike(data / target.data, scale=scale)
    path = initial_weights(target, data)
    if not path.exists():
        config, classes = target.config().override({"seed": 1}), tuple(sorted(OBJECTS))
        network = new_network(config, len(classes))
        header = make_header(network, config.network, classes, _LICENCE)
        tensors = {name: each.contiguous() for name, each in network.state_dict().items()}
        with new_file(path) as temporary:
            safetensors.torch.save_file(tensors, temporary, metadata=header)


def is_finished(run: Path, config: Config) -> bool:
    """Returns whether a run has completed all steps of this configuration."""
    done = saved_steps(run / "checkpoints")[-1:] == [config.schedule.steps]
    return done and not differences(read_config(run), config)


def has_begun(place: Place) -> bool:
    """Returns whether a run exists, so that the data were checked before."""
    return any((place.run(seed) / "config.json").exists() for seed in place.seeds)
