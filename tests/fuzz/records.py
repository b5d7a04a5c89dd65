"""Fuzz targets: what a run leaves behind, results of other programs, and what is typed."""

import contextlib
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import synthetic_runs
import torch
from fuzz import values
from fuzz.choices import TEXTS, Choices, damaged

from multibox.cli.arguments import parse
from multibox.config import Config, differences, flatten
from multibox.evaluation.coco_results import read_coco_results
from multibox.evaluation.results import read_results
from multibox.recipes import RECIPES
from multibox.reporting.reading import read_record
from multibox.storage import checkpoint, manifest
from multibox.storage.run_folder import read_run
from multibox.storage.safetensors_io import serialized
from multibox.weights.files import find_weights

_CONFIG = RECIPES["ssd300-lite"]().to_json()
_NAMES = ("model.safetensors", "optimizer.safetensors", "state.json")
_STATE = {"best": {"step": 2, "AP": 0.5}, "journal_bytes": 10, "sums": [1.5, 2, None], "lr": 0.5}


def config_json(choices: Choices, folder: Path) -> None:
    """A stored configuration, which is read back as it was."""
    path = folder / "config.json"
    path.write_bytes(values.mutated_bytes(_CONFIG, choices))
    (folder / "run.json").write_text("{}")
    config, _ = read_run(folder)
    assert Config.from_json(config.to_json()) == config
    assert not differences(config, config)
    assert flatten(config)["steps"] >= 1
    assert 0 < config.optimizer.lr < float("inf")
    assert config.run.batch_size % config.optimizer.accumulate == 0


def _run(folder: Path) -> dict[str, str]:
    """Returns the files of a small run by their names."""
    run = folder / "pristine"
    if not run.exists():
        story = synthetic_runs.TINY
        synthetic_runs.write_run(run, story)
        synthetic_runs.add_evaluations(run, story)
        synthetic_runs.add_samples(run, story, 1)
        synthetic_runs.add_timings(run, story)
    names = ["run.json", "config.json", "metrics.jsonl", "timings.jsonl"]
    names += [f"{kind}/step-00000600.json" for kind in ("evaluations", "samples")]
    return {name: (run / name).read_text(encoding="utf-8") for name in names}


def run_folder(choices: Choices, folder: Path) -> None:
    """A run's folder of which one file is changed, as the report reads it."""
    run = folder / "run"
    for name, text in _run(folder).items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(text, encoding="utf-8")
    (run / "samples" / "step-00000600-0.jpg").touch()
    name = choices.pick(tuple(_run(folder)))
    path = run / name
    text = path.read_text(encoding="utf-8")
    if name.endswith(".json"):
        path.write_bytes(values.mutated_bytes(text, choices))
    else:
        sound = text.splitlines()[:40]
        lines = [*sound]
        for _ in range(choices.below(4)):
            place = choices.below(len(lines))
            lines[place] = values.text_of(values.mutated(sound[place], choices))
        data = "\n".join(lines).encode("utf-8", "surrogatepass")
        path.write_bytes(damaged(data, choices) if choices.one_in(8) else data)
    record = read_record(run)
    assert record.last_step >= 0 or record.training is not None
    for sample in record.samples:
        assert sample.picture.resolve().is_relative_to(run.resolve())


def checkpoint_folder(choices: Choices, folder: Path) -> None:
    """A checkpoint of which something is changed, its sums put right or not."""
    place = folder / "run" / "checkpoints" / "step-00000002"
    place.mkdir(parents=True, exist_ok=True)
    tensors = {"a.weight": torch.ones(2, 3), "b": torch.zeros(1, dtype=torch.int64)}
    data = {name: b"".join(serialized(tensors, {})) for name in _NAMES[:2]}
    data["state.json"] = manifest.encoded(_STATE)
    victim = choices.pick((*_NAMES[::-1], "manifest.json"))
    if victim == "state.json":
        state = values.mutated_bytes(json.dumps(_STATE), choices)
        data[victim] = choices.pick((state, state + b"\n"))
    elif victim in data:
        data[victim] = mutated_safetensors(data[victim], choices)
    files = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in data.items()
    }
    vouching = {"format": manifest.FORMAT, "step": 2, "files": files}
    text = manifest.encoded(vouching)
    if victim == "manifest.json":
        value = values.text_of(values.mutated(text.decode(), choices))
        # As this program writes it, so that it is read at all; indented, deep ones become long.
        with contextlib.suppress(ValueError, RecursionError):
            text = manifest.encoded(json.loads(value)) if len(value) < 20_000 else value.encode()
        text = damaged(text, choices) if choices.one_in(4) else text
    for name, content in (data | {"manifest.json": text}).items():
        (place / name).write_bytes(content)
    loaded = checkpoint.load(place)
    assert loaded.step == 2
    assert all(isinstance(tensor, torch.Tensor) for tensor in loaded.model.values())
    assert find_weights(folder / "run", "best") == place / "model.safetensors"


def mutated_safetensors(data: bytes, choices: Choices) -> bytes:
    """Returns a file of safetensors with changes in its header, its length or its data."""
    end = 8 + int.from_bytes(data[:8], "little")
    header, body = data[8:end], data[end:]
    header = values.mutated_bytes(header.decode(), choices)
    if choices.one_in(6):
        header = header.replace(b"F32", choices.pick((b"F64", b"I8", b"BOOL", b"F8_E4M3", b"X")))
    length = len(header)
    match choices.below(12):
        case 11:
            length = choices.pick((0, 1, length + 1, 1 << 20, 1 << 40, (1 << 64) - 1))
        case 10:
            body = body[: choices.below(len(body) + 1)]
        case 9:
            body += bytes(1 + choices.below(200))
        case 8:
            body = damaged(body, choices)
    return length.to_bytes(8, "little") + header + body


_IMAGE_IDS = ("000001", "2008_000007", "a b")
_TOKENS = (
    "000001",
    "0.5",
    "1",
    "-3.25",
    "1e2",
    "1e-400",
    "1e400",
    "inf",
    "nan",
    "0x10",
    "1d2",
    "'1'",
)


def results(choices: Choices, folder: Path) -> None:
    """A results file of the devkit's form."""
    rows = [["000001", "0.9", "1", "2", "30", "40"], ["2008_000007", "1e-3", "5.5", "0", "9", "9"]]
    for _ in range(choices.below(6)):
        row = rows[choices.below(len(rows))]
        match choices.below(7):
            case 0 | 1:
                row[choices.below(len(row))] = choices.pick(_TOKENS)
            case 2:
                row[choices.below(len(row))] = choices.pick(TEXTS)
            case 3:
                row.insert(choices.below(len(row)), choices.pick((*_TOKENS, *TEXTS)))
            case 4 if len(row) > 1:
                row.pop()
            case 5:
                rows.append([*row])
            case _:
                rows.append([choices.pick(TEXTS)])
    ends, gaps = ("\n", "\r\n", "\r", "\n\n", "\x0b", "\x1c"), (" ", "  ", "\t", "\xa0", ",")
    end, gap = choices.pick(ends), choices.pick(gaps)
    data = end.join(gap.join(row) for row in rows).encode("utf-8", "surrogatepass")
    data = damaged(data, choices) if choices.one_in(8) else data
    (folder / "results").mkdir(exist_ok=True)
    (folder / "results" / "comp4_det_test_cat.txt").write_bytes(data)
    found = read_results(
        folder / "results", split="test", classes=("cat", "dog"), image_ids=_IMAGE_IDS
    )
    cat = found.detections["cat"]
    assert found.missing == ("dog",)
    assert cat.boxes_px.shape == (len(cat.images), 4)
    assert cat.scores.shape == (len(cat.images),)
    assert ((cat.images >= 0) & (cat.images < len(_IMAGE_IDS))).all()
    assert np.isfinite(cat.scores).all()
    assert np.isfinite(cat.boxes_px).all()


_COCO_RESULTS = json.dumps(
    [
        {"image_id": 9, "category_id": 3, "bbox": [1, 2.5, 30, 40], "score": 0.9},
        {"image_id": 42, "category_id": 7, "bbox": [0, 0, 9, 9], "score": 1e-3},
    ]
)


def coco_results(choices: Choices, folder: Path) -> None:
    """A results file of COCO's form."""
    path = folder / "results.json"
    path.write_bytes(values.mutated_bytes(_COCO_RESULTS, choices))
    categories = {3: "cat", 7: "dog", 8: "idle"}
    found = read_coco_results(
        path, images={9: 0, 42: 1}, categories=categories, classes=("cat", "dog")
    )
    assert [*found] == ["cat", "dog"]
    for of_class in found.values():
        assert of_class.boxes_px.shape == (len(of_class.images), 4)
        assert set(of_class.images.tolist()) <= {0, 1}
        assert np.isfinite(of_class.scores).all()
        assert np.isfinite(of_class.boxes_px).all()


_LINES = (
    ["check", "data", "--splits", "a", "b", "--strict", "--examples", "5"],
    ["evaluate", "run", "--metric", "voc12", "--which", "best", "--json"],
    ["evaluate", "--results", "found", "--data", "data", "--split", "test"],
    ["predict", "run", "a.jpg", "b.jpg", "--out", "found", "--score-threshold", "0.5"],
    ["convert", "a", "b", "--to", "keras", "--classes", "cat", "dog"],
    ["report", "run", "--beside", "x"],
    ["bench", "data", "ssd300-lite", "--batch-size", "2"],
    ["download", "voc2007", "--out", "data"],
    ["demo", "--out", "x"],
    ["train", "ssd300-lite", "--data", "x", "--out", "y", "--lr", "0.1", "--drops", "1", "2"],
    ["train", "ssd7", "--data", "x", "--out", "y", "--no-crop", "--schedule", "cosine"],
)
_WORDS = (
    *("--lr", "--steps", "--batch-size", "--seed", "--json", "--help", "--", "-h", "--no-json"),
    *("--classes", "--drops", "--data", "--out", "--fix", "--accumulate", "--lr=1", "--recipe"),
    *("train", "check", "ssd300-vgg16", "coco", "None", "True", "nan", "1e3", "0x10", "1,2", "[1]"),
)


def arguments(choices: Choices, folder: Path) -> None:
    """A command line, which means a verb or ends in status 2 (0 for help)."""
    line = list(choices.pick(_LINES))
    for _ in range(choices.below(4)):
        place = choices.below(len(line) + 1)
        match choices.below(6):
            case 0:
                line.insert(place, choices.pick(_WORDS))
            case 1:
                line.insert(place, choices.pick(TEXTS))
            case 2 if place < len(line):
                line[place] = choices.pick((*_WORDS, *TEXTS, "-1", "0", "1e400", "9" * 5000))
            case 3 if place < len(line):
                del line[place]
            case 4 if place < len(line):
                line[place] = line[place][:-1]
            case _:
                line += line[place:]
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        try:
            verb = parse(line)
        except SystemExit as stop:
            assert stop.code in (0, 2), stop.code  # noqa: PT017  # not the error's message
            assert "Traceback" not in quiet.getvalue()
            return
    assert type(verb).__name__.endswith("Arguments")
