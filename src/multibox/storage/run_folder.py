"""Reads and writes the JSON files of a run's folder, and checks that the folder is this run's."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from multibox.config import Config, differences
from multibox.errors import ConfigError, StorageError
from multibox.hardware import usable_cores
from multibox.storage.disk import sync_files

JSON = Any

# Size limit of config.json and run.json, which have a few thousand bytes.
_MOST_BYTES = 4 << 20
_MOST_SPLIT_BYTES = 1 << 30

SPLIT = "split.json"
"""The image ids of drawn splits, in the run's folder."""


def write_json(path: Path, value: JSON) -> None:
    """Writes a JSON file completely or not at all. Its folder is created if it does not exist.

    Raises:
        StorageError: The disk is full or fails.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file completely or not at all. Its folder is created if it does not exist.

    A temporary file that a killed process left is overwritten. Only one process may write a file at
    a time.

    Raises:
        StorageError: The disk is full or fails.
    """
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # A path may contain bytes that are not UTF-8. JSON reads the escape as the same path.
            with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageError(
            f"cannot be written ({error.strerror})",
            file=path,
            remedy="Check that the folder is writable and the disk not full",
        ) from None


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Writes a new file completely or not at all, as a context manager.

    Args:
        path: The file. It must not exist. Its folder is created if it does not exist.

    Yields:
        The temporary file to write, empty.

    Raises:
        StorageError: The file exists, or the disk is full or fails.
    """
    if path.exists():
        raise StorageError(
            "already exists, so it is not overwritten",
            file=path,
            remedy="Choose another name, or remove the file",
        )
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(b"")
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    # PyTorch and safetensors report a full disk with errors of their own.
    except (OSError, RuntimeError, SafetensorError) as error:
        # The text of an OSError would name the temporary file.
        reason = error.strerror if isinstance(error, OSError) else None
        reason = reason or str(error).strip().partition("\n")[0]
        raise StorageError(
            f"cannot be written ({reason})",
            file=path,
            remedy="Check that the folder is writable and the disk not full",
        ) from None


def refuse_foreign(folder: Path) -> None:
    """Checks that a folder is a run, is empty or does not exist.

    Raises:
        ConfigError: The folder contains other files.
        StorageError: The folder cannot be read, or is not a folder.
    """
    if not os.path.lexists(folder) or (folder / "config.json").exists():
        return
    # These are written first, so a run that was killed early has only these files.
    names = set(_names(folder)) - {"run.json", SPLIT}
    foreign = sorted(name for name in names if not name.startswith("."))
    if foreign:
        raise ConfigError(
            f"is neither empty nor a run (it contains {foreign[0]})",
            file=folder,
            remedy="Choose another folder for --out",
        )


def claim(
    folder: Path,
    config: Config,
    facts: dict[str, JSON],
    split: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Writes a new run's `config.json` and `run.json`, or checks that they match those on disk.

    Args:
        folder: The run's folder, locked.
        config: The configuration from the command line.
        facts: The content of `run.json`: recipe, data, classes, initial weights.
        split: The image ids of drawn splits, for `split.json`. None: no splits were drawn.

    Raises:
        ConfigError: The folder contains other files, or a run with another configuration or other
            data.
        StorageError: The folder cannot be read or written.
    """
    stored = folder / "config.json"
    if not stored.exists():
        refuse_foreign(folder)
        if split is not None:
            write_split(folder, split)
        write_json(folder / "run.json", facts)
        # If the power fails before config.json is on the disk, the next start writes both again.
        sync_files(folder, [folder / "run.json"])
        write_text(stored, config.to_json())
        sync_files(folder, [stored])
        return
    before, facts_before = read_run(folder)
    if facts_before.get("data_digest") != facts["data_digest"] and before == config:
        counts = [_count_images(each) for each in (facts_before, facts)]
        number = f": {counts[0]} images then, {counts[1]} now" if counts[0] != counts[1] else ""
        raise ConfigError(
            f"its images or annotations have changed since the run began{number}",
            file=folder,
            remedy=f"Start a new run from its weights: --init {folder} --out NEW",
        )
    changed = differences(before, config)
    names = ("recipe", "data_digest", "init_digest", "precision", "stream_version", "fitted_boxes")
    changed += [
        f"{name}: {facts_before.get(name)}, now {facts.get(name)}"
        for name in names
        if facts_before.get(name) != facts.get(name)
    ]
    if changed:
        raise ConfigError(
            f"is a run with another configuration ({'; '.join(changed)})",
            file=folder,
            remedy="Repeat the command that started it, or choose another folder for --out",
        )


def _count_images(facts: dict[str, JSON]) -> int | None:
    try:
        return sum(int(split["images"]) for split in facts["data"].values())
    except (KeyError, TypeError, AttributeError, ValueError):
        return None


def read_config(folder: Path) -> Config:
    """Returns the configuration of a run.

    Raises:
        ConfigError: The folder is not a run, or its configuration is damaged or of a newer format.
    """
    stored = folder / "config.json"
    if not stored.is_file():
        raise ConfigError(
            "is not a run's folder", file=folder, remedy="Use the folder that was --out for train"
        )
    return Config.from_json(_text(stored), file=str(stored))


def read_run(folder: Path) -> tuple[Config, dict[str, JSON]]:
    """Returns the configuration and the facts (`run.json`) of a run.

    Raises:
        ConfigError: The folder is not a run, or its files are damaged.
    """
    config, facts = read_config(folder), folder / "run.json"
    try:
        found = json.loads(_text(facts))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"cannot be read ({error})", file=facts) from None
    if not isinstance(found, dict):
        raise ConfigError("is not a JSON object", file=facts)
    return config, found


def write_split(folder: Path, ids: Mapping[str, Sequence[str]]) -> None:
    """Writes the image ids of drawn splits to `split.json`.

    Raises:
        StorageError: The disk is full or fails.
    """
    write_json(folder / SPLIT, {name: list(listed) for name, listed in ids.items()})
    sync_files(folder, [folder / SPLIT])


def read_split(folder: Path) -> dict[str, list[str]] | None:
    """Returns the image ids of the run's drawn splits, or None if the run has none.

    Raises:
        ConfigError: The file is damaged.
    """
    file = folder / SPLIT
    if not file.exists():
        return None
    try:
        found = json.loads(_text(file, most=_MOST_SPLIT_BYTES))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"cannot be read ({error})", file=file) from None
    lists = found.values() if isinstance(found, dict) else [None]
    if not all(isinstance(ids, list) and all(isinstance(i, str) for i in ids) for ids in lists):
        raise ConfigError("does not hold lists of image ids by split", file=file)
    splits: dict[str, list[str]] = found
    return splits


def _text(path: Path, *, most: int = _MOST_BYTES) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
        if len(content) <= most:
            return content.decode()
        reason = f"has more than {most} bytes, so it was not written by multibox"
    except (OSError, UnicodeDecodeError) as error:
        reason = f"cannot be read ({error})"
    raise ConfigError(reason, file=path)


def environment(device: torch.device, precision: torch.dtype) -> dict[str, JSON]:
    """Returns the entries of `environment.json` about the software and hardware."""
    versions = {
        name: importlib.metadata.version(package)
        for name, package in (
            ("multibox", "multibox"),
            ("torch", "torch"),
            ("numpy", "numpy"),
            ("opencv", "opencv-python-headless"),
        )
    }
    return {
        "python": platform.python_version(),
        **versions,
        "platform": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": str(precision).removeprefix("torch."),
    }


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208
    except OSError as error:
        raise StorageError(
            f"cannot be read ({error.strerror})", file=folder, remedy="Choose another folder"
        ) from None


def _temporary(path: Path) -> Path:
    """Returns the name that a file has until it is complete."""
    return path.with_name(f".{path.name}.new")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
