"""Any class name that a person can type goes through training, evaluation, report and export."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from xml.etree.ElementTree import Element, SubElement, tostring

import jaxtyping
import numpy as np
import onnx
import pytest
from markupsafe import escape
from names import AWKWARD

from multibox.drawing import write_picture
from multibox.reporting.text import markdown_value
from multibox.weights.files import find_weights, read_weights

Command = Callable[..., CompletedProcess[str]]
SPEED = ("--batch-size", "2", "--warmup-steps", "1", "--steps", "2", "--workers", "0")
SIDE = 96
# `train` lists the classes with rich's markup, which has no start of [/x].


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images per split. Each shows one object of every class."""
    root = tmp_path_factory.mktemp("names")
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for number, split in enumerate(("trainval", "trainval", "test", "test")):
        image_id = f"{number:06}"
        pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        write_picture(root / "JPEGImages" / f"{image_id}.png", pixels)
        annotation = Element("annotation")
        size = SubElement(annotation, "size")
        for side in ("width", "height"):
            SubElement(size, side).text = str(SIDE)
        for place, name in enumerate(AWKWARD):
            thing = SubElement(annotation, "object")
            SubElement(thing, "name").text = name
            box = SubElement(thing, "bndbox")
            x, y = 16 * (place % 5), 16 * (place // 5)
            corners = {"xmin": x, "ymin": y, "xmax": x + 15, "ymax": y + 14}
            for side, value in corners.items():
                SubElement(box, side).text = str(value)
        (root / "Annotations" / f"{image_id}.xml").write_bytes(tostring(annotation, "utf-8"))
        with (root / "ImageSets" / "Main" / f"{split}.txt").open("a") as file:
            file.write(f"{image_id}\n")
    return root


def done(result: CompletedProcess[str]) -> CompletedProcess[str]:
    assert result.returncode == 0, result.stderr
    return result


@pytest.mark.system
def test_any_class_name_works_everywhere(
    called: Command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    run, classes = tmp_path / "run", ("--classes", *AWKWARD)
    device = ("--device", "cpu")
    done(called("train", "ssd300-lite", "--data", data, "--out", run, *device, *SPEED, *classes))
    evaluation = json.loads((run / "evaluations" / "step-00000002.json").read_text())
    assert evaluation["voc07"]["AP"].keys() == set(AWKWARD)

    shown = done(called("check", data, *classes)).stdout
    table = done(called("evaluate", run, *device)).stdout
    for name in AWKWARD:
        assert name[:40] in table
        assert name[:40] in shown or len(name) > 100

    by_network = json.loads(done(called("evaluate", run, *device, "--json")).stdout)
    results = ("--results", run / "evaluations", "--data", data, "--split", "test")
    by_files = done(called("evaluate", *results, "--json"))
    assert "no results file" not in by_files.stderr
    assert json.loads(by_files.stdout)["AP"].keys() == by_network["AP"].keys() == set(AWKWARD)

    done(called("report", run))
    page = (run / "report" / "index.html").read_text()
    text = (run / "report" / "report.md").read_text()
    for name in AWKWARD:
        assert f">{escape(name)}<" in page
        assert f"|{markdown_value(name)} " in text

    picture = next((data / "JPEGImages").iterdir())
    found = tmp_path / "found"
    threshold = ("--score-threshold", "0.01")
    done(called("predict", run, picture, "--out", found, *device, *threshold))
    record = json.loads((found / f"{picture.stem}.json").read_text())
    assert {detection["name"] for detection in record["detections"]} <= set(AWKWARD)

    done(called("convert", run, tmp_path / "weights.multibox"))
    # Shape checks compare sizes, and the exporter would then treat the sizes as constants.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    done(called("export", run, "--out", tmp_path / "weights.onnx"))
    assert read_weights(find_weights(tmp_path / "weights.multibox")).classes == tuple(AWKWARD)
    metadata = {p.key: p.value for p in onnx.load(tmp_path / "weights.onnx").metadata_props}
    assert json.loads(metadata["classes"]) == list(AWKWARD)
