"""Datasets in VOC layout as other tools export them to COCO's."""

import json
from pathlib import Path

from multibox.data.dataset import Dataset
from multibox.data.formats.voc import read_voc


def export_coco(voc: Path, folder: Path) -> Path:
    """Writes a VOC folder's trainval and test in COCO's layout; boxes must be whole numbers."""
    train = read_voc(voc, "trainval")
    (folder / "annotations").mkdir(parents=True)
    for split in ("trainval", "test"):
        dataset = read_voc(voc, split, classes=train.classes)
        text = json.dumps(_content(dataset))
        (folder / "annotations" / f"instances_{split}.json").write_text(text)
        (folder / split).mkdir()
        for item in dataset.annotations:
            (folder / split / item.image_path.name).write_bytes(item.image_path.read_bytes())
    return folder


def _content(dataset: Dataset) -> dict[str, object]:
    images, things = [], []
    for number, item in enumerate(dataset.annotations):
        size = {"width": item.width_px, "height": item.height_px}
        images.append({"id": number, "file_name": item.image_path.name, **size})
        for label, box, crowd in zip(
            item.labels.tolist(), item.boxes_px.tolist(), item.difficult.tolist(), strict=True
        ):
            x0, y0, x1, y1 = box
            fields = {"image_id": number, "category_id": 7 * (label + 1), "iscrowd": int(crowd)}
            things.append({"id": len(things), "bbox": [x0, y0, x1 - x0, y1 - y0], **fields})
    categories = [
        {"id": 7 * (label + 1), "name": name} for label, name in enumerate(dataset.classes)
    ]
    return {"images": images, "annotations": things, "categories": categories}
