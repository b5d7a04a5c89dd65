"""The verb `check`: finds faults in a dataset and prints its statistics before training."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from multibox.build import NETWORKS, default_box_tables
from multibox.data.check.dataset_checks import check_dataset
from multibox.data.check.findings import Finding, Severity
from multibox.data.check.fixed_copy import write_fixed
from multibox.data.check.fixes import Change
from multibox.data.check.statistics import (
    SIZE_EDGES_PX,
    BoxTable,
    SplitStatistics,
    split_statistics,
)
from multibox.errors import ConfigError, one_line
from multibox.hardware import usable_cores

COMPARED = ("ssd300-vgg16", "ssd512-vgg16")
"""If no network is named, the default boxes of these are compared with the objects."""

_SEVERITIES: tuple[Severity, ...] = ("fault", "warning", "note")
_STYLES: dict[Severity, str] = {"fault": "bold red", "warning": "yellow", "note": "dim"}
_SPLITS_PER_TABLE = 4


@dataclass(frozen=True)
class CheckResult:
    """The result of a check.

    Attributes:
        root: The folder that was checked: the dataset, or the corrected copy.
        findings: The findings of all severities.
        census: The statistics of each split that can be used.
        changes: Number of corrections in the copy, or None if no copy was made.
        removed: Number of objects of each class that the copy lacks.
        rotated: Number of images that were rotated by their EXIF orientation.
    """

    root: Path
    findings: tuple[Finding, ...]
    census: dict[str, SplitStatistics]
    changes: int | None
    removed: dict[str, int] = field(default_factory=dict)
    rotated: int = 0

    def count(self, severity: Severity) -> int:
        """Returns the number of findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Returns the result as a JSON object."""
        return {
            "data": str(self.root),
            "counts": {severity: self.count(severity) for severity in _SEVERITIES},
            "findings": [
                {
                    "kind": finding.kind,
                    "severity": finding.severity,
                    "file": str(finding.file),
                    "position": finding.position,
                    "reason": finding.reason,
                    "remedy": finding.remedy,
                }
                for finding in self.findings
            ],
            "size_edges_px": SIZE_EDGES_PX,
            "splits": {name: dataclasses.asdict(census) for name, census in self.census.items()},
            "changes": self.changes,
            "removed": self.removed,
            "rotated": self.rotated,
        }


def check(
    root: Path,
    console: Console,
    *,
    splits: tuple[str, ...] = (),
    classes: tuple[str, ...] = (),
    network: str | None = None,
    fix: Path | None = None,
) -> CheckResult:
    """Checks a dataset and returns the findings and statistics. The dataset is not changed.

    Args:
        root: A folder in VOC or COCO layout.
        console: Shows a progress bar.
        splits: The splits, named as for training. If empty, all splits of the folder.
        classes: The class names that objects may have. If empty, any name is allowed.
        network: The network with the default boxes to compare with the objects. None: `COMPARED`.
        fix: Folder for a corrected copy in VOC layout. If given, the copy is checked instead.

    Raises:
        DataError: The folder has neither layout, or has no splits.
        ConfigError: There is no such network, splits and `fix` are both given, or the copy and the
            dataset would overlap.
        StorageError: The folder of the copy is not empty, or cannot be written.
    """
    tables = [
        BoxTable(name, scales, NETWORKS[name].image_size_px, boxes)
        for name in ((network,) if network else COMPARED)
        for scales, boxes in default_box_tables(name).items()
    ]
    changes: list[Change] | None = None
    if fix is not None:
        if splits:
            raise ConfigError("--fix copies all splits", remedy="Leave out --splits")
        changes = write_fixed(root, fix, classes=classes)
        root = fix
    with _progress(console) as bar:
        task = bar.add_task("decoding")
        read = check_dataset(
            root,
            splits,
            classes,
            workers=usable_cores(),
            progress=lambda done, of: bar.update(task, completed=done, total=of),
        )
    census = {name: split_statistics(dataset, tables) for name, dataset in read.datasets.items()}
    if changes is None:
        return CheckResult(root, read.findings, census, None)
    removed = Counter(name for change in changes for name in change.removed)
    rotated = sum(change.is_rotation for change in changes)
    return CheckResult(root, read.findings, census, len(changes), dict(removed), rotated)


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn())
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        yield progress


def print_check(checkup: CheckResult, console: Console, *, examples: int) -> None:
    """Prints the result of a check as tables of at most 80 columns.

    Args:
        checkup: The result.
        console: The console to print to.
        examples: Maximum number of findings to print for each kind.
    """
    width = min(80, console.width)
    if checkup.census:
        for table in (*_split_tables(checkup), *_class_tables(checkup), *_size_tables(checkup)):
            console.print(table, width=width)
    if checkup.findings:
        console.print(_findings_table(checkup, examples), width=width)
    found = [(checkup.count(severity), severity) for severity in _SEVERITIES]
    counts = ", ".join(f"{n} {severity}{'s' * (n != 1)}" for n, severity in found)
    console.print(Text(f"{one_line(str(checkup.root))}: {counts}"), soft_wrap=True)


def fix_summary(checkup: CheckResult) -> str:
    """Returns what the corrected copy lacks, as one line."""
    if not checkup.removed:
        lost = "no object was removed"
    else:
        counted = sorted(checkup.removed.items(), key=lambda item: (-item[1], item[0]))
        names = ", ".join(f"{count} {one_line(name)!r}" for name, count in counted)
        lost = f"objects that were removed: {names}"
    turned = f"; {checkup.rotated} images were rotated by their EXIF orientation, as annotated"
    return f"{lost}{turned if checkup.rotated else ''}"


def _table(title: str, *columns: str | Text) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", overflow="fold")
    return table


def _split_tables(checkup: CheckResult) -> Iterator[Table]:
    columns = ("split", "images", "empty", "objects", "difficult", "classes", "imbalance")
    table = _table("Splits", *columns)
    for name, census in checkup.census.items():
        counts = (census.images, census.empty_images, census.objects, census.difficult)
        cells = [*map(str, counts), str(len(census.classes)), f"{census.imbalance:.1f}"]
        table.add_row(Text(name), *cells)
    yield table


def _class_tables(checkup: CheckResult) -> Iterator[Table]:
    for start in range(0, len(checkup.census), _SPLITS_PER_TABLE):
        splits = list(checkup.census)[start : start + _SPLITS_PER_TABLE]
        counts = [checkup.census[name].classes for name in splits]
        names = sorted({name for classes in counts for name in classes})
        table = _table("Objects per class", "class", *(Text(one_line(split)) for split in splits))
        for name in names:
            objects = [classes[name].objects if name in classes else 0 for classes in counts]
            table.add_row(Text(one_line(name)), *map(str, objects))
        yield table


def _size_tables(checkup: CheckResult) -> Iterator[Table]:
    edges = (*(f"<{edge}" for edge in SIZE_EDGES_PX), "more")
    sizes = _table("Percent of objects by size in the input (pixels)", "split", "input", *edges)
    title = "Percent of objects without a default box at an IoU of 0.5, by size"
    reach = _table(title, "split", "boxes", "all", *edges)
    for name, census in checkup.census.items():
        for size in census.sizes:
            height, width = size.input_px
            shares = [f"{100 * share:.0f}" for share in size.share_by_size]
            sizes.add_row(Text(one_line(name)), f"{height}x{width}", *shares)
        for found in census.reach:
            parts = ["" if s is None else f"{100 * s:.0f}" for s in found.forced_by_size]
            label = f"{found.network.partition('-')[0]} {found.default_boxes}"
            reach.add_row(Text(one_line(name)), label, f"{100 * found.forced:.0f}", *parts)
    yield from (sizes, reach)


def _findings_table(checkup: CheckResult, examples: int) -> Table:
    table = Table("kind", "count", "what", title="Findings", title_justify="left", show_lines=True)
    kinds = Counter(finding.kind for finding in checkup.findings)
    order = {severity: place for place, severity in enumerate(_SEVERITIES)}
    first = {finding.kind: finding for finding in reversed(checkup.findings)}
    for kind in sorted(kinds, key=lambda kind: (order[first[kind].severity], -kinds[kind], kind)):
        of_kind = [finding for finding in checkup.findings if finding.kind == kind]
        lines = [_shortened(finding, checkup.root) for finding in of_kind[:examples]]
        if len(of_kind) > examples:
            lines.append(f"and {len(of_kind) - examples} more")
        lines.append(f"{first[kind].remedy}.")
        severity = first[kind].severity
        label = Text(f"{severity}\n{kind}", style=_STYLES[severity])
        table.add_row(label, str(kinds[kind]), Text("\n".join(lines), overflow="fold"))
    return table


def _shortened(finding: Finding, root: Path) -> str:
    """Returns a finding as one line, with its file relative to the dataset's folder."""
    file = finding.file.relative_to(root) if finding.file.is_relative_to(root) else finding.file
    return str(dataclasses.replace(finding, file=file))
