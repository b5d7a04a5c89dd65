"""The files of a run's folder besides checkpoints and journal, and the question whose it is."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator
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

# Of a configuration, or of the facts of a run; they have a few thousand.
_MOST_BYTES = 4 << 20


def write_json(path: Path, value: JSON) -> None:
    """Writes a JSON file whole or not at all, making its folder where it is absent.

    Raises:
        StorageError: The disk is full or fails.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all, making its folder where it is absent.

    What a killed predecessor left is overwritten: one process at a time writes a file.

    Raises:
        StorageError: The disk is full or fails.
    """
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # A path of bytes that are no UTF-8 becomes what JSON reads back as the same path.
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
    """Lets a file be written whole or not at all, and never in another's place.

    Args:
        path: Must not exist; its folder is made where it is absent.

    Yields:
        The temporary file to write, empty.

    Raises:
        StorageError: The file exists, or the disk is full or fails.
    """
    if path.exists():
        raise StorageError(
            "exists, and is not replaced", file=path, remedy="Choose another name, or remove it"
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
    # A full disk is an error of their own to the writers of PyTorch and of safetensors.
    except (OSError, RuntimeError, SafetensorError) as error:
        # The system's own error would name the temporary file.
        reason = error.strerror if isinstance(error, OSError) else None
        reason = reason or str(error).strip().partition("\n")[0]
        raise StorageError(
            f"cannot be written ({reason})",
            file=path,
            remedy="Check that the folder is writable and the disk not full",
        ) from None


def refuse_foreign(folder: Path) -> None:
    """Refuses a folder that holds something else than a run.

    Raises:
        ConfigError: It does.
        StorageError: It cannot be read, or is none.
    """
    if not os.path.lexists(folder) or (folder / "config.json").exists():
        return
    # A run that was killed before it began has the facts only: they are written first.
    names = set(_names(folder)) - {"run.json"}
    foreign = sorted(name for name in names if not name.startswith("."))
    if foreign:
        raise ConfigError(
            f"is not empty and not a run (it holds {foreign[0]})",
            file=folder,
            remedy="Choose another folder for --out",
        )


def claim(folder: Path, config: Config, facts: dict[str, JSON]) -> None:
    """Makes a folder this run's, or finds that it already is.

    Args:
        folder: The run's folder, locked.
        config: What the command line says.
        facts: `run.json`: recipe, data, classes, initial weights.

    Raises:
        ConfigError: The folder holds something else, a run of another configuration, or one on
            other data.
        StorageError: The folder cannot be read or written.
    """
    stored = folder / "config.json"
    if not stored.exists():
        refuse_foreign(folder)
        write_json(folder / "run.json", facts)
        # Both are written anew if the power fails before the second is there.
        sync_files(folder, [folder / "run.json"])
        write_text(stored, config.to_json())
        sync_files(folder, [stored])
        return
    before, facts_before = read_run(folder)
    changed = differences(before, config)
    changed += [
        f"{name}: {facts_before.get(name)}, now {facts[name]}"
        for name in ("recipe", "data_digest", "init_digest", "precision", "stream_version")
        if facts_before.get(name) != facts[name]
    ]
    if changed:
        raise ConfigError(
            f"is a run of another configuration ({'; '.join(changed)})",
            file=folder,
            remedy="Repeat the command line it was begun with, or choose another folder for --out",
        )


def read_config(folder: Path) -> Config:
    """Returns the configuration of a run.

    Raises:
        ConfigError: The folder is not a run, or its configuration is damaged or of a newer version.
    """
    stored = folder / "config.json"
    if not stored.is_file():
        raise ConfigError("is not a run's folder", file=folder, remedy="Give what --out was")
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


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) <= _MOST_BYTES:
            return content.decode()
        reason = f"has more than {_MOST_BYTES} bytes, which no run wrote"
    except (OSError, UnicodeDecodeError) as error:
        reason = f"cannot be read ({error})"
    raise ConfigError(reason, file=path)


def environment(device: torch.device, precision: torch.dtype) -> dict[str, JSON]:
    """Returns what `environment.json` says of the software and hardware."""
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
    """Returns the name that a file has until it is whole."""
    return path.with_name(f".{path.name}.new")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
