"""The verb `ablate`: trains a recipe with several changes, and says which of them help."""

import dataclasses
import difflib
import json
import math
import shutil
import statistics
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from rich.console import Console

from multibox.build import Datasets, read_datasets
from multibox.commands.train import Request, require_apart, train
from multibox.config import Config
from multibox.data.dataset import Dataset
from multibox.data.splits.draw import take
from multibox.data.splits.near_duplicates import group_similar, thumbnails
from multibox.errors import ConfigError, counted
from multibox.hardware import usable_cores
from multibox.processes.distributed import is_one_of_several
from multibox.recipes import RECIPES
from multibox.rng import stream
from multibox.storage.jsonl import Journal
from multibox.weights.files import NO_LICENCE

BASE = "base"
"""Name of the recipe without changes."""

METRICS = ("voc07", "voc12", "coco")

_RESULTS = "results.jsonl"
_FORM = 'recipe = "ssd300-lite", [options] and [changes.NAME] with options of train'


class Run(NamedTuple):
    """A training of an ablation.

    Attributes:
        change: Name of the change, or `BASE`.
        seed: Seed of the run.
        fold: Number of the fold that it is evaluated on, from 1; 0 if there are no folds.
    """

    change: str
    seed: int
    fold: int


class Effect(NamedTuple):
    """The effect of a change on a metric.

    Attributes:
        change: Name of the change, or `BASE`.
        runs: Number of runs.
        mean: Mean of the metric over the runs.
        difference: Mean difference from the runs of `BASE` with the same seed and fold.
        error: Standard error of this mean. NaN if there is only one pair.
        verdict: Whether the difference exceeds two standard errors. Empty for `BASE`.
    """

    change: str
    runs: int
    mean: float
    difference: float
    error: float
    verdict: Literal["", "better", "worse", "within the noise"]


class Results(NamedTuple):
    """The metrics of all runs.

    Attributes:
        metrics: The value of each of `METRICS`, by run.
    """

    metrics: Mapping[Run, Mapping[str, float]]

    def effects(self, metric: str) -> list[Effect]:
        """Returns the effects on a metric, in the order of the table."""
        values = {run: found[metric] for run, found in self.metrics.items()}
        effects = []
        for change in dict.fromkeys(run.change for run in values):
            of_change = {run: value for run, value in values.items() if run.change == change}
            pairs = [value - values[run._replace(change=BASE)] for run, value in of_change.items()]
            error = statistics.stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else math.nan
            mean, difference = statistics.mean(of_change.values()), statistics.mean(pairs)
            verdict = _verdict(difference, error) if change != BASE else ""
            effects.append(Effect(change, len(pairs), mean, difference, error, verdict))
        return effects


def _verdict(difference: float, error: float) -> Literal["better", "worse", "within the noise"]:
    if not abs(difference) > 2 * error:
        return "within the noise"
    return "better" if difference > 0 else "worse"


def ablate(
    table: Path, data: Path, out: Path, *, seeds: int, folds: int, console: Console
) -> Results:
    """Trains every row of a table with every seed, and returns the metrics.

    The runs are evaluated on the validation split, or on folds of the training split. The test
    split is never used. Runs that are done are not repeated, and an interrupted run is resumed.

    Args:
        table: A TOML file with a recipe, options of all runs, and the changes by name.
        data: The dataset's folder.
        out: The folder for the runs and their results.
        seeds: Number of seeds, from 0.
        folds: Number of folds. With 0, the runs are evaluated on the validation split.
        console: Prints a line for each run.

    Raises:
        MultiboxError: The table, an option or the data cannot be used.
        Interrupted: A signal stopped a run; its state is saved.
    """
    _require_numbers(seeds, folds)
    recipe, configs = read_table(table)
    require_apart(out, data)
    datasets = list(_splits(configs[BASE], data, folds))
    runs = [
        (Run(change, seed, fold), used)
        for seed in range(seeds)
        for fold, used in datasets
        for change in configs
    ]
    out.mkdir(parents=True, exist_ok=True)
    with Journal(out / _RESULTS, None) as journal:
        done = _read_results(out / _RESULTS, configs)
        for number, (run, used) in enumerate(runs, start=1):
            if run not in done:
                config = configs[run.change].override({"seed": run.seed})
                folder = out / f"{run.change}-seed-{run.seed}-fold-{run.fold}"
                request = Request(recipe, config, data, folder, None, NO_LICENCE, datasets=used)
                train(request, Console(quiet=True))
                done[run] = _last_metrics(folder)
                stored = {"config": json.loads(config.to_json())}
                journal.write({**run._asdict(), **done[run], **stored})
                journal.sync()
                # The results remain. The weights of all runs would fill the disk.
                shutil.rmtree(folder / "checkpoints")
            values = ", ".join(f"{name} {value:.4f}" for name, value in done[run].items())
            where = f"seed {run.seed}{f', fold {run.fold} of {folds}' if run.fold else ''}"
            text = f"{number} of {len(runs)}  {run.change}, {where}: {values}"
            console.print(text, highlight=False, markup=False, soft_wrap=True)
    return Results({run: done[run] for run, _ in runs})


def _require_numbers(seeds: int, folds: int) -> None:
    if seeds < 1:
        raise ConfigError(f"seeds is {seeds}, but it must be at least 1", remedy="Change --seeds")
    if folds < 0 or folds == 1:
        reason = f"folds is {folds}, but it must be 0 or at least 2"
        raise ConfigError(reason, remedy="Change --folds")
    if is_one_of_several():
        raise ConfigError("ablate runs in one process only", remedy="Start it without torchrun")


def read_table(path: Path) -> tuple[str, dict[str, Config]]:
    """Returns the recipe of a table, and the configuration of each row, `BASE` first.

    Raises:
        ConfigError: The file cannot be read, or has an unknown recipe, option or value.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", file=path) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"is not TOML ({error})", file=path) from None
    recipe, changes = content.pop("recipe", None), content.pop("changes", None)
    options = content.pop("options", {})
    if content or recipe not in RECIPES or not isinstance(changes, dict) or not changes:
        wrong = f"has an unknown entry {min(content)!r}" if content else "lacks a recipe or changes"
        if recipe is not None and recipe not in RECIPES:
            wrong = f"has an unknown recipe {recipe!r}"
        raise ConfigError(wrong, file=path, remedy=f"Write {_FORM}")
    configs = {BASE: _configure(recipe, [options], path)}
    for name, change in changes.items():
        if name == BASE or not name.isprintable() or "/" in name or name.startswith("."):
            reason = f"cannot have a change with the name {name!r}"
            raise ConfigError(reason, file=path, remedy="Use letters and digits")
        configs[name] = _configure(recipe, [options, change], path)
    return recipe, configs


def _configure(recipe: str, layers: Sequence[object], path: Path) -> Config:
    """Returns the configuration of a recipe with some options, checked like a stored one."""
    values = json.loads(json.dumps(dataclasses.asdict(RECIPES[recipe]())))
    sections = [values, *(part for part in values.values() if isinstance(part, dict))]
    for layer in layers:
        if not isinstance(layer, dict):
            raise ConfigError("options and changes are tables", file=path, remedy=f"Write {_FORM}")
        for option, value in layer.items():
            name = option.replace("-", "_")
            section = next((s for s in sections if not isinstance(s.get(name, {}), dict)), None)
            if section is None:
                known = [key for s in sections for key in s if not isinstance(s[key], dict)]
                near = difflib.get_close_matches(name, known, n=1)
                raise ConfigError(
                    f"has an unknown option {option!r}",
                    file=path,
                    remedy=f"Did you mean {near[0].replace('_', '-')!r}?" if near else None,
                )
            section[name] = value
    return Config.from_value(values, file=str(path))


def _splits(config: Config, data: Path, folds: int) -> Iterator[tuple[int, Datasets]]:
    """Yields the number and the splits of each fold, or 0 and the splits of the configuration."""
    if not folds:
        found = read_datasets(config, data)
        if not config.data.split and not config.data.val_split:
            raise ConfigError(
                "there is no validation split, and ablate does not use the test split",
                remedy="Set val-split in [options], or use --folds 5",
            )
        yield 0, found._replace(test=None)
        return
    train = read_datasets(config, data).train
    paths = [item.image_path for item in train.annotations]
    groups = group_similar(thumbnails(paths, threads=usable_cores()))
    names = stream(0, "folds").permutation(np.unique(groups))
    if len(names) < folds:
        reason = f"{counted(len(names), 'different image')} cannot be divided into {folds} folds"
        raise ConfigError(reason, file=data, remedy="Use fewer --folds")
    fold_of = {name: number % folds for number, name in enumerate(names.tolist())}
    places = np.array([fold_of[name] for name in groups.tolist()])
    for fold in range(folds):
        inside = _part(train, places == fold, f"fold {fold + 1}")
        yield fold + 1, Datasets(_part(train, places != fold, train.name), inside, None)


def _part(dataset: Dataset, chosen: np.ndarray, name: str) -> Dataset:
    ids = [item.image_id for item, kept in zip(dataset.annotations, chosen, strict=True) if kept]
    return take(dataset, ids, name)


def _last_metrics(folder: Path) -> dict[str, float]:
    last = max((folder / "evaluations").glob("step-*.json"))
    record = json.loads(last.read_text(encoding="utf-8"))
    values = (record["voc07"]["mAP"], record["voc12"]["mAP"], record["coco"]["AP"])
    return dict(zip(METRICS, (value or 0.0 for value in values), strict=True))


def _read_results(path: Path, configs: Mapping[str, Config]) -> dict[Run, dict[str, float]]:
    """Returns the results of the runs that are done.

    Raises:
        ConfigError: A run was made with other options than the table's.
    """
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        run = Run(values["change"], values["seed"], values["fold"])
        if run.change not in configs:
            continue
        config = configs[run.change].override({"seed": run.seed})
        if json.loads(config.to_json()) != values["config"]:
            raise ConfigError(
                f"the options of {run.change!r} have changed since it was run",
                file=path,
                remedy="Give the change another name, or use another --out",
            )
        found[run] = {name: values[name] for name in METRICS}
    return found
