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
from multibox.errors import DataError

FOLDER = Path(__file__).with_name("strangers")
EXPORTS = sorted(FOLDER.glob("*/*.expected.json"))

# What the exports of these tools lack: the file of an image without objects, or the image itself.
LACKING = {"annotation-missing", "image-missing"}

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
    root = file.with_name(file.name.removesuffix(".expected.json"))
    if root.parent.name == "csv" and root.name == "label-studio":
        # Its boxes are JSON in a column. Label Studio's own JSON is read instead.
        with pytest.raises(DataError, match="is Label Studio's CSV"):
            open_dataset(root)
        return
    expected = json.loads(file.read_text(encoding="utf-8"))
    folder = open_dataset(root)
    # Years are part of the names of COCO's splits. "default" is how CVAT calls no split.
    splits = {re.sub(r"[0-9]+$|^default$", "", name) or UNSPLIT: name for name in folder.splits}
    assert set(splits) == {name.replace("default", "") or UNSPLIT for name in expected["splits"]}
    for split, images in expected["splits"].items():
        dataset = folder.read(splits[split.replace("default", "") or UNSPLIT], on_bad="skip")
        assert {fault.kind for fault in dataset.faults} <= LACKING
        found = boxes(dataset)
        wanted = {name_of(image): sorted(objects) for image, objects in images.items()}
        assert found.keys() <= wanted.keys()
        lacking = [name for name in wanted.keys() - found.keys() if wanted[name]]
        assert len(lacking) <= len(dataset.faults)
        # Some YOLO exports do not name their classes.
        named = not all(name.isdigit() for name in dataset.classes)
        for name, objects in found.items():
            assert not named or [item[0] for item in objects] == [item[0] for item in wanted[name]]
            read, written = (sorted(item[1:] for item in each) for each in (objects, wanted[name]))
            assert len(read) == len(written)
            for one, other in zip(read, written, strict=True):
                assert one == pytest.approx(other, abs=0.01)
