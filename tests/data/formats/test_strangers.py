"""Exports that other tools wrote are read as those tools meant them."""

import json
import re
import unicodedata
from pathlib import Path
from urllib.parse import unquote

import pytest

from multibox.data.dataset import Dataset
from multibox.data.formats.layouts import open_dataset
from multibox.data.formats.tree import UNSPLIT

FOLDER = Path(__file__).with_name("strangers")
EXPORTS = sorted(FOLDER.glob("*/*.expected.json"))

Boxes = dict[str, list[list[object]]]


def name_of(file: str) -> str:
    """The name of an image without folders, Label Studio's prefix and percent encoding."""
    name = unicodedata.normalize("NFC", unquote(Path(file).name))
    return re.sub(r"^[0-9a-f]{8}-", "", name)


def boxes(dataset: Dataset) -> Boxes:
    return {
        name_of(str(item.image_path)): sorted(
            [dataset.classes[label], *box]
            for label, box in zip(item.labels.tolist(), item.boxes_px.tolist(), strict=True)
        )
        for item in dataset.annotations
    }


@pytest.mark.parametrize("file", EXPORTS, ids=lambda f: f"{f.parent.name}-{f.name.split('.')[0]}")
def test_export(file: Path) -> None:
    expected = json.loads(file.read_text(encoding="utf-8"))
    folder = open_dataset(file.with_name(file.name.removesuffix(".expected.json")))
    splits = {name or UNSPLIT: images for name, images in expected["splits"].items()}
    assert set(folder.splits) == set(splits)
    for split, images in splits.items():
        dataset = folder.read(split)
        assert dataset.faults == ()
        found = boxes(dataset)
        assert found.keys() == {name_of(image) for image in images}
        for image, objects in images.items():
            of_image = found[name_of(image)]
            assert [item[0] for item in of_image] == [item[0] for item in sorted(objects)]
            for read, written in zip(of_image, sorted(objects), strict=True):
                assert read[1:] == pytest.approx(written[1:], abs=0.01)
