"""Reads a run folder for the report.

It reads plain JSON only. It works on any machine, and also for a run that is still training, was
stopped early or was killed.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from multibox.config import Config
from multibox.errors import ConfigError, StorageError
from multibox.reporting.record import (
    METRICS,
    About,
    Curve,
    Drop,
    Evaluation,
    Loss,
    Record,
    Rollback,
    Sample,
    Split,
    Timing,
)

T = TypeVar("T")


def read_record(folder: Path) -> Record:
    """Returns everything that a run has written so far.

    Raises:
        ConfigError: The folder is not a run folder, or its configuration is unknown.
        StorageError: A file in it cannot be read or is damaged.
    """
    for name in ("config.json", "run.json"):
        if not (folder / name).is_file():
            raise ConfigError(
                f"is not a run folder: it has no {name}",
                file=folder,
                remedy="Give the folder that --out of multibox train named",
            )
    stored = folder / "config.json"
    config = dataclasses.asdict(Config.from_value(_load(stored), file=str(stored)))
    about = {"config": config, "run": _load(folder / "run.json")}
    environment = folder / "environment.json"
    journal, timings = folder / "metrics.jsonl", folder / "timings.jsonl"
    lines = _current(_lines(journal), journal)
    evaluations = _files_of_steps(folder / "evaluations")
    tested = folder / "evaluations" / "test.json"
    return Record(
        folder=folder,
        config=config,
        facts=about["run"],
        about=_parse(_about, about, folder / "run.json"),
        environment=_parse(dict, _load(environment), environment) if environment.exists() else {},
        training=_of_kind("train", lines, _loss, journal),
        validation=_of_kind("validation", lines, _loss, journal),
        drops=_of_kind("drop", lines, _drop, journal),
        rollbacks=_of_kind("rollback", lines, _rollback, journal),
        timings=[_parse(_timing, line, timings) for line in _lines(timings)],
        evaluations=[_parse(_evaluation, _load(path), path) for path in evaluations],
        test=_parse(_evaluation, _load(tested), tested) if tested.exists() else None,
        samples=_samples(folder),
        last_step=max(
            (int(line["step"]) for line in lines if line["kind"] != "rollback"), default=0
        ),
    )


def _files_of_steps(folder: Path) -> list[Path]:
    """Returns the JSON files of a folder in the order of their steps; none if it is absent."""
    try:
        # Not `glob`, which takes a folder that cannot be listed for an empty one.
        return sorted(path for path in folder.iterdir() if path.match("step-*.json"))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(
            f"cannot be listed ({error.strerror})",
            file=folder,
            remedy="Check the path and its permissions",
        ) from None


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise StorageError(f"cannot be read ({error.strerror})", file=path) from None
    except (ValueError, RecursionError) as error:
        raise StorageError(f"not JSON ({error})", file=path) from None


def _lines(path: Path) -> list[dict[str, Any]]:
    """Returns the objects of a JSON-lines file, without an incomplete last line."""
    found = []
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"cannot be read ({error.strerror})", file=path) from None
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                found.append(_object(json.loads(line)))
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise StorageError(
                    f"not a JSON object ({error})", file=path, position=f"line {number}"
                ) from None
    return found


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _parse(read: Callable[[Any], T], value: Any, file: Path) -> T:
    """Applies a reader to the content of a file. Its errors name the file."""
    try:
        return read(value)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        reason = f"not of the expected form ({type(error).__name__}: {error})"
        step = value.get("step") if isinstance(value, dict) else None
        position = None if step is None else f"step {step}"
        raise StorageError(reason, file=file, position=position) from None


def _current(lines: list[dict[str, Any]], file: Path) -> list[dict[str, Any]]:
    """Returns the lines of a kind by step. If a rollback repeated a step, the last one counts."""
    kept = {}
    for number, line in enumerate(lines):
        step, kind = _parse(lambda line: (int(line["step"]), str(line["kind"])), line, file)
        kept[(kind, step, number if kind == "rollback" else None)] = line
    return sorted(kept.values(), key=lambda line: int(line["step"]))


def _of_kind(
    kind: str, lines: list[dict[str, Any]], read: Callable[[Any], T], file: Path
) -> list[T]:
    return [_parse(read, line, file) for line in lines if line["kind"] == kind]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _loss(line: dict[str, Any]) -> Loss:
    numbers = [_number(line.get(name)) for name in ("l2", "confidence", "localization", "lr")]
    return Loss(int(line["step"]), _number(line["loss"]), *numbers)


def _drop(line: dict[str, Any]) -> Drop:
    return Drop(int(line["step"]), _number(line.get("lr")))


def _rollback(line: dict[str, Any]) -> Rollback:
    reason = line.get("reason") or ", ".join(line.get("images", []))
    return Rollback(int(line["step"]), int(line["to"]), float(line["lr_scale"]), str(reason))


def _timing(line: dict[str, Any]) -> Timing:
    return Timing(
        str(line.get("kind", "train")),
        float(line["seconds"]),
        _number(line.get("images_per_second")),
        _number(line.get("data_wait")),
    )


def _split(value: dict[str, Any]) -> Split:
    objects = {str(name): int(count) for name, count in value["objects"].items()}
    skipped, notes = int(value.get("skipped", 0)), tuple(map(str, value.get("notes", ())))
    return Split(str(value["name"]), int(value["images"]), objects, skipped, notes)


def _about(value: dict[str, Any]) -> About:
    config, run = value["config"], value["run"]
    test = run["data"]["test"]
    return About(
        recipe=str(run["recipe"]),
        version=str(run["multibox"]),
        network=str(config["network"]),
        classes=[*map(str, run["classes"])],
        train=_split(run["data"]["train"]),
        validation=_split(run["data"].get("validation", test)),
        test=_split(test),
        parameters=int(run["parameters"]),
        default_boxes=int(run["default_boxes"]),
        planned_steps=int(config["schedule"]["steps"]),
    )


def _evaluation(value: dict[str, Any]) -> Evaluation:
    metric = value["metric"]
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r}")
    numbers = {name: value.get(name) or {} for name in METRICS}
    return Evaluation(
        step=int(value["step"]),
        split=str(value["split"]),
        images=int(value["images"]),
        objects=int(value["objects"]),
        metric=metric,
        mean={
            name: _number(numbers[name].get("AP" if name == "coco" else "mAP")) for name in METRICS
        },
        classes={
            name: {
                label: _number(ap)
                for label, ap in (
                    numbers[name].get("AP_by_class" if name == "coco" else "AP") or {}
                ).items()
            }
            for name in METRICS
        },
        coco={
            name: _number(ap) for name, ap in numbers["coco"].items() if not isinstance(ap, dict)
        },
        curves={
            label: Curve([*map(float, curve["recall"])], [*map(float, curve["precision"])])
            for label, curve in value.get("curves", {}).items()
        },
    )


def _samples(folder: Path) -> list[Sample]:
    """Returns the newest pictures. It does not follow a path that leaves the run folder."""
    files = _files_of_steps(folder / "samples")
    if not files:
        return []
    read = [
        _parse(lambda value: Sample(str(value["id"]), folder / value["picture"]), value, files[-1])
        for value in _parse(list, _load(files[-1]), files[-1])
    ]
    inside = folder.resolve()
    return [sample for sample in read if _is_inside(sample.picture, inside)]


def _is_inside(path: Path, folder: Path) -> bool:
    try:
        return path.is_file() and path.resolve().is_relative_to(folder)
    except (OSError, ValueError):
        # No name that a file could have.
        return False
