"""What runs leave behind, also those that were killed, went back or were tampered with."""

import math
from pathlib import Path

import pytest
import synthetic_runs

from multibox.errors import ConfigError, StorageError
from multibox.reporting.reading import read_record


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return synthetic_runs.write_run(tmp_path / "run", synthetic_runs.STOPPED)


def test_line_that_was_being_written_is_left_out(run: Path) -> None:
    whole = read_record(run)
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as journal:
        journal.write('{"kind": "train", "st')
    assert read_record(run) == whole


def test_damaged_line_is_named(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_bytes().split(b"\n")
    lines[4] = b"\x00\x00\x00"
    (run / "metrics.jsonl").write_bytes(b"\n".join(lines))
    with pytest.raises(StorageError, match=r"metrics\.jsonl, line 5: not a JSON object"):
        read_record(run)


@pytest.mark.parametrize("name", ["metrics.jsonl", "timings.jsonl"])
def test_journal_that_cannot_be_read_is_named(run: Path, name: str) -> None:
    """A folder in its place: root may read any file."""
    (run / name).unlink(missing_ok=True)
    (run / name).mkdir()
    with pytest.raises(StorageError, match=rf"{name}: cannot be read \(Is a directory\)"):
        read_record(run)


@pytest.mark.parametrize("line", [b"[" * 100_000, b"\xff"])
def test_line_of_any_content_is_named(run: Path, line: bytes) -> None:
    with (run / "metrics.jsonl").open("ab") as journal:
        journal.write(line + b"\n{}\n")
    with pytest.raises(StorageError, match="not a JSON object"):
        read_record(run)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", '{"kind": "train"}\n'),
        ("metrics.jsonl", '{"kind": "train", "step": 3}\n'),
        ("metrics.jsonl", "[1, 2]\n"),
        ("timings.jsonl", '{"step": 3, "seconds": "long"}\n'),
        ("run.json", "{}"),
        ("run.json", "[]"),
        ("config.json", "{}"),
        ("config.json", '{"network": 3}'),
        ("config.json", "{"),
        ("config.json", "\udcff"),
        ("environment.json", "3"),
        ("evaluations/step-00000001.json", '{"step": 1}'),
        ("evaluations/step-00000001.json", '{"metric": "voc77"}'),
        ("samples/step-00000001.json", '[{"id": 3}]'),
        ("samples/step-00000001.json", "{}x"),
        ("samples/step-00000001.json", "true"),
        ("metrics.jsonl", '{"kind": "train", "step": 1e999}\n'),
        ("metrics.jsonl", '{"kind": "train", "step": 3, "loss": 1' + "0" * 400 + "}\n"),
        ("metrics.jsonl", "[" * 100_000 + "\n"),
        ("run.json", "[" * 100_000),
    ],
)
def test_damaged_file_ends_in_one_error_that_names_it(run: Path, name: str, content: str) -> None:
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises((StorageError, ConfigError)) as raised:
        read_record(run)
    assert str(raised.value).startswith(str(run / name))


def test_after_a_rollback_the_repeated_measurement_counts(run: Path) -> None:
    back = {"kind": "rollback", "step": 250, "to": 100, "lr_scale": 0.5, "images": ["a", "b"]}
    lines = [
        {"kind": "train", "step": 100, "loss": 5.0, "l2": 1.0},
        {"kind": "train", "step": 200, "loss": math.nan, "l2": 1.0},
        back,
        back,
        {"kind": "train", "step": 200, "loss": 4.0, "l2": None},
    ]
    synthetic_runs.write_lines(run / "metrics.jsonl", lines)
    record = read_record(run)
    assert [(loss.step, loss.multibox) for loss in record.training] == [(100, 5.0), (200, 4.0)]
    assert math.isnan(record.training[1].total)
    assert [back.reason for back in record.rollbacks] == ["a, b", "a, b"]
    assert record.last_step == 200


def test_pictures_outside_the_run_and_missing_ones_are_left_out(run: Path, tmp_path: Path) -> None:
    synthetic_runs.add_samples(run, synthetic_runs.STOPPED, count=1)
    (tmp_path / "secret.jpg").write_bytes(b"not of the run")
    (run / "samples" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    paths = ["../secret.jpg", str(tmp_path / "secret.jpg"), "samples/link.jpg", "x" * 300, "a\0b"]
    (inside,) = (run / "samples").glob("step-*.jpg")
    rows = [{"id": path, "picture": path} for path in [*paths, f"samples/{inside.name}"]]
    synthetic_runs.write_json(run / "samples" / "step-00009999.json", rows)
    assert [sample.picture for sample in read_record(run).samples] == [inside]


def test_numbers_by_class_within_coco_are_passed_over(run: Path) -> None:
    found = synthetic_runs.evaluation(5, {"RBC": 0.5})
    found["coco"]["AP_by_class"] = {"RBC": 0.3}
    (run / "evaluations").mkdir()
    synthetic_runs.write_json(run / "evaluations" / "step-00000005.json", found)
    coco = read_record(run).evaluations[0].coco
    assert set(coco) == {"AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"}
    assert math.isnan(coco["AP_small"])
