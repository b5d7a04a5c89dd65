"""Writes the same photographs as datasets in many layouts, literally, as the tools lay them out."""

import csv
import json
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

Box = tuple[float, float, float, float]


class Photo(NamedTuple):
    """A photograph: its file, its size, its split and its objects."""

    path: Path
    width: int
    height: int
    split: str
    objects: tuple[tuple[str, Box], ...]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def stem(self) -> str:
        return self.path.stem

    def fractions(self, box: Box) -> tuple[float, float, float, float]:
        """The centre and the size of a box as fractions of the photograph."""
        x0, y0, x1, y1 = box
        width, height = self.width, self.height
        return (
            (x0 + x1) / 2 / width,
            (y0 + y1) / 2 / height,
            (x1 - x0) / width,
            (y1 - y0) / height,
        )


SPLITS = ("train", "val", "test")
VALID = {"train": "train", "val": "valid", "test": "test"}


def classes_of(photos: Iterable[Photo]) -> list[str]:
    return sorted({name for photo in photos for name, _ in photo.objects})


def put(photo: Photo, folder: Path) -> None:
    """A photograph in a folder, without a copy of its bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / photo.name).symlink_to(photo.path.resolve())


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def by_split(photos: list[Photo]) -> dict[str, list[Photo]]:
    return {split: [photo for photo in photos if photo.split == split] for split in SPLITS}


# --- VOC's XML


def xml(photo: Photo) -> str:
    objects = "".join(
        f"<object><name>{escape(name)}</name><pose>Unspecified</pose><difficult>0</difficult>"
        f"<bndbox><xmin>{x0:g}</xmin><ymin>{y0:g}</ymin><xmax>{x1:g}</xmax><ymax>{y1:g}</ymax>"
        "</bndbox></object>"
        for name, (x0, y0, x1, y1) in photo.objects
    )
    return (
        f"<annotation><folder>images</folder><filename>{escape(photo.name)}</filename>"
        f"<path>/home/someone/{escape(photo.name)}</path><size><width>{photo.width}</width>"
        f"<height>{photo.height}</height><depth>3</depth></size>{objects}</annotation>"
    )


def voc_folders(images: str, annotations: str) -> Callable[[Path, list[Photo]], None]:
    """Images in one folder, XML in another; `{}` is the split's name as Roboflow spells it."""

    def make(root: Path, photos: list[Photo]) -> None:
        for photo in photos:
            put(photo, root / images.format(VALID[photo.split]))
            folder = root / annotations.format(VALID[photo.split])
            write(folder / f"{photo.stem}.xml", xml(photo))

    return make


def voc_tree(root: Path, photos: list[Photo]) -> None:
    voc_folders("JPEGImages", "Annotations")(root, photos)
    for split, of_split in by_split(photos).items():
        lines = "".join(f"{photo.stem}\n" for photo in of_split)
        write(root / "ImageSets" / "Main" / f"{split}.txt", lines)


def voc_year(root: Path, photos: list[Photo]) -> None:
    voc_tree(root / "VOCdevkit" / "VOC2007", photos)


# --- COCO's JSON


def coco(photos: list[Photo], prefix: str = "") -> str:
    names = classes_of(photos)
    annotations = [
        {
            "image_id": place,
            "category_id": names.index(name) + 1,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": (x1 - x0) * (y1 - y0),
            "iscrowd": 0,
        }
        for place, photo in enumerate(photos)
        for name, (x0, y0, x1, y1) in photo.objects
    ]
    content = {
        "images": [
            {"id": place, "file_name": prefix + p.name, "width": p.width, "height": p.height}
            for place, p in enumerate(photos)
        ],
        "annotations": [{"id": place, **item} for place, item in enumerate(annotations)],
        "categories": [{"id": place, "name": name} for place, name in enumerate(names, start=1)],
    }
    return json.dumps(content)


def coco_official(root: Path, photos: list[Photo]) -> None:
    for split, of_split in by_split(photos).items():
        write(root / "annotations" / f"instances_{split}2017.json", coco(of_split))
        for photo in of_split:
            put(photo, root / f"{split}2017")


def coco_roboflow(root: Path, photos: list[Photo]) -> None:
    for split, of_split in by_split(photos).items():
        write(root / VALID[split] / "_annotations.coco.json", coco(of_split))
        for photo in of_split:
            put(photo, root / VALID[split])


def coco_per_split(root: Path, photos: list[Photo]) -> None:
    for split, of_split in by_split(photos).items():
        write(root / f"{split}.json", coco(of_split, "images/"))
    for photo in photos:
        put(photo, root / "images")


def coco_one_file(file: str, prefix: str) -> Callable[[Path, list[Photo]], None]:
    def make(root: Path, photos: list[Photo]) -> None:
        write(root / file, coco(photos, prefix))
        for photo in photos:
            put(photo, root / "images")

    return make


# --- YOLO's text files


def yolo_lines(photo: Photo, names: list[str]) -> str:
    return "".join(
        f"{names.index(name)} " + " ".join(f"{side:.8f}" for side in photo.fractions(box)) + "\n"
        for name, box in photo.objects
    )


def yolo_folders(
    images: str, labels: str, description: Callable[[list[str]], dict[str, str]]
) -> Callable[[Path, list[Photo]], None]:
    """Images and label files in folders, `{}` being the split, and files that describe them."""

    def make(root: Path, photos: list[Photo]) -> None:
        names = classes_of(photos)
        spelt = (
            VALID
            if "train/" not in images and images.startswith("{}")
            else dict(zip(SPLITS, SPLITS, strict=True))
        )
        for photo in photos:
            put(photo, root / images.format(spelt[photo.split]))
            file = root / labels.format(spelt[photo.split]) / f"{photo.stem}.txt"
            write(file, yolo_lines(photo, names))
        for file, text in description(names).items():
            write(root / file, text)

    return make


def ultralytics(names: list[str]) -> dict[str, str]:
    listed = "".join(f"  {place}: {name}\n" for place, name in enumerate(names))
    paths = "path: ../datasets/photos\ntrain: images/train\nval: images/val\ntest: images/test\n"
    return {"data.yaml": f"{paths}names:\n{listed}"}


def roboflow(names: list[str]) -> dict[str, str]:
    paths = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    return {"data.yaml": f"{paths}\nnc: {len(names)}\nnames: {names!r}\n"}


def yolo_lists(root: Path, photos: list[Photo]) -> None:
    yolo_folders("images", "labels", lambda _: {})(root, photos)
    names = classes_of(photos)
    for split, of_split in by_split(photos).items():
        write(root / f"{split}.txt", "".join(f"./images/{photo.name}\n" for photo in of_split))
    write(root / "data.yaml", f"train: train.txt\nval: val.txt\ntest: test.txt\nnames: {names!r}\n")


def darknet(root: Path, photos: list[Photo]) -> None:
    yolo_folders("obj_train_data", "obj_train_data", lambda _: {})(root, photos)
    names = classes_of(photos)
    write(root / "obj.names", "".join(f"{name}\n" for name in names))
    described = f"classes = {len(names)}\ntrain = data/train.txt\nnames = data/obj.names\n"
    write(root / "obj.data", described + "backup = backup/\n")
    listed = "".join(f"data/obj_train_data/{photo.name}\n" for photo in photos)
    write(root / "train.txt", listed)


# --- CSV


def table(path: Path, rows: Iterable[Iterable[object]], delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


TENSORFLOW = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")


def tensorflow_rows(photos: list[Photo]) -> list[tuple[object, ...]]:
    return [(p.name, p.width, p.height, n, *box) for p in photos for n, box in p.objects]


def csv_images(photos: list[Photo], folder: Path) -> None:
    for photo in photos:
        put(photo, folder)


def csv_tensorflow(root: Path, photos: list[Photo]) -> None:
    csv_images(photos, root / "images")
    table(root / "labels.csv", [TENSORFLOW, *tensorflow_rows(photos)])


def csv_per_split(root: Path, photos: list[Photo]) -> None:
    for split, of_split in by_split(photos).items():
        csv_images(of_split, root / "images" / split)
        table(root / f"{split}_labels.csv", [TENSORFLOW, *tensorflow_rows(of_split)])


def csv_column(root: Path, photos: list[Photo]) -> None:
    csv_images(photos, root / "images")
    rows = [(p.name, n, *box, p.split) for p in photos for n, box in p.objects]
    head = ("image", "label", "xmin", "ymin", "xmax", "ymax", "split")
    table(root / "data.csv", [head, *rows], delimiter=";")


def csv_retinanet(root: Path, photos: list[Photo]) -> None:
    csv_images(photos, root / "images")
    rows = [(f"images/{p.name}", *box, n) for p in photos for n, box in p.objects]
    table(root / "annotations.csv", rows)
    table(root / "classes.csv", [(n, place) for place, n in enumerate(classes_of(photos))])


def csv_ssd_keras(root: Path, photos: list[Photo]) -> None:
    csv_images(photos, root / "images")
    rows = [
        (p.name, x0, x1, y0, y1, classes_of(photos).index(n) + 1)
        for p in photos
        for n, (x0, y0, x1, y1) in p.objects
    ]
    table(root / "labels.csv", [("frame", "xmin", "xmax", "ymin", "ymax", "class_id"), *rows])


def csv_open_images(root: Path, photos: list[Photo]) -> None:
    csv_images(photos, root / "images")
    codes = {name: f"/m/0{place}abc" for place, name in enumerate(classes_of(photos))}
    rows = [
        (p.stem, "xclick", codes[n], 1, x0 / p.width, x1 / p.width, y0 / p.height, y1 / p.height)
        for p in photos
        for n, (x0, y0, x1, y1) in p.objects
    ]
    head = ("ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax")
    flags = ("IsOccluded", "IsTruncated", "IsGroupOf", "IsDepiction", "IsInside")
    table(root / "train-annotations-bbox.csv", [head + flags, *((*r, 0, 0, 0, 0, 0) for r in rows)])
    table(root / "class-descriptions-boxable.csv", [(code, name) for name, code in codes.items()])


# --- LabelMe, CVAT, Label Studio


def labelme(root: Path, photos: list[Photo]) -> None:
    for photo in photos:
        put(photo, root)
        shapes = [
            {
                "label": name,
                "points": [[x1, y1], [x0, y0]],
                "group_id": None,
                "shape_type": "rectangle",
                "flags": {},
            }
            for name, (x0, y0, x1, y1) in photo.objects
        ]
        content = {
            "version": "5.0.1",
            "flags": {},
            "shapes": shapes,
            "imagePath": photo.name,
            "imageData": None,
            "imageHeight": photo.height,
            "imageWidth": photo.width,
        }
        write(root / f"{photo.stem}.json", json.dumps(content))


def cvat(root: Path, photos: list[Photo]) -> None:
    images = "".join(
        f'<image id="{place}" name={quoteattr(photo.name)} subset="{photo.split}" '
        f'width="{photo.width}" height="{photo.height}">'
        + "".join(
            f'<box label={quoteattr(name)} source="manual" occluded="0" xtl="{x0:.2f}" '
            f'ytl="{y0:.2f}" xbr="{x1:.2f}" ybr="{y1:.2f}" z_order="0"></box>'
            for name, (x0, y0, x1, y1) in photo.objects
        )
        + "</image>"
        for place, photo in enumerate(photos)
    )
    declared = '<?xml version="1.0" encoding="utf-8"?>\n'
    write(
        root / "annotations.xml",
        f"{declared}<annotations><version>1.1</version>{images}</annotations>",
    )
    for photo in photos:
        put(photo, root / "images")


def label_studio(root: Path, photos: list[Photo]) -> None:
    tasks = [
        {
            "id": place,
            "data": {"image": f"/data/upload/1/{place:08x}-{photo.name}"},
            "annotations": [
                {
                    "id": place,
                    "was_cancelled": False,
                    "result": [
                        {
                            "type": "rectanglelabels",
                            "from_name": "label",
                            "to_name": "image",
                            "original_width": photo.width,
                            "original_height": photo.height,
                            "image_rotation": 0,
                            "value": {
                                "x": 100 * x0 / photo.width,
                                "y": 100 * y0 / photo.height,
                                "width": 100 * (x1 - x0) / photo.width,
                                "height": 100 * (y1 - y0) / photo.height,
                                "rotation": 0,
                                "rectanglelabels": [name],
                            },
                        }
                        for name, (x0, y0, x1, y1) in photo.objects
                    ],
                }
            ],
        }
        for place, photo in enumerate(photos)
    ]
    write(root / "project-1-at-2026-11-01-10-00-0a1b2c3d.json", json.dumps(tasks))
    for photo in photos:
        put(photo, root / "images")


def zipped(make: Callable[[Path, list[Photo]], None], inside: str) -> Callable[..., None]:
    """The layout in an archive, below a folder that may be empty text."""

    def written(root: Path, photos: list[Photo]) -> None:
        loose = root.with_name(f"{root.stem}-loose")
        make(loose, photos)
        with zipfile.ZipFile(root, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(loose.rglob("*")):
                if path.is_file():
                    archive.write(path.resolve(), str(Path(inside) / path.relative_to(loose)))

    return written


LAYOUTS: dict[str, Callable[[Path, list[Photo]], None]] = {
    "voc-lists": voc_tree,
    "voc-year": voc_year,
    "voc-beside": voc_folders("photos", "photos"),
    "voc-annotations": voc_folders("images", "annotations"),
    "voc-annots": voc_folders("images", "annots"),
    "voc-labels": voc_folders("images", "labels"),
    "voc-xml": voc_folders("images", "xml"),
    "voc-roboflow": voc_folders("{}", "{}"),
    "voc-split-folders": voc_folders("{}/images", "{}/annotations"),
    "voc-annotations.zip": zipped(voc_folders("images", "annotations"), ""),
    "voc-lists.zip": zipped(voc_tree, "photos"),
    "coco-official": coco_official,
    "coco-roboflow": coco_roboflow,
    "coco-per-split": coco_per_split,
    "coco-cvat": coco_one_file("annotations/instances_default.json", ""),
    "coco-label-studio": coco_one_file("result.json", "images\\\\1/0a1b2c3d-"),
    "coco-roboflow.zip": zipped(coco_roboflow, "export"),
    "yolo-ultralytics": yolo_folders("images/{}", "labels/{}", ultralytics),
    "yolo-roboflow": yolo_folders("{}/images", "{}/labels", roboflow),
    "yolo-classes": yolo_folders(
        "images", "labels", lambda names: {"classes.txt": "\n".join(names) + "\n"}
    ),
    "yolo-beside": yolo_folders(
        "photos", "photos", lambda names: {"photos/classes.txt": "\n".join(names) + "\n"}
    ),
    "yolo-lists": yolo_lists,
    "yolo-darknet": darknet,
    "yolo-ultralytics.zip": zipped(yolo_folders("images/{}", "labels/{}", ultralytics), ""),
    "csv-tensorflow": csv_tensorflow,
    "csv-per-split": csv_per_split,
    "csv-column": csv_column,
    "csv-retinanet": csv_retinanet,
    "csv-ssd-keras": csv_ssd_keras,
    "csv-open-images": csv_open_images,
    "csv-tensorflow.zip": zipped(csv_tensorflow, ""),
    "labelme": labelme,
    "cvat": cvat,
    "label-studio": label_studio,
}
"""The layouts by name. A name that ends in .zip is an archive."""

NAMELESS = {"csv-ssd-keras"}
"""Layouts that do not name their classes."""


def photos(shared: Path, count: int = 30) -> list[Photo]:
    """The first raccoons with their objects; large ones are a class of their own."""
    folder, found = shared / "data" / "raccoon", []
    numbers = sorted(int(path.stem.partition("-")[2]) for path in (folder / "images").iterdir())
    for place, number in enumerate(numbers[:count]):
        tree = ElementTree.parse(folder / "annotations" / f"raccoon-{number}.xml")
        width, height = (int(tree.findtext(f"size/{side}") or 0) for side in ("width", "height"))
        objects = []
        for box in tree.iter("bndbox"):
            corners = [float(box.findtext(tag) or 0) for tag in ("xmin", "ymin", "xmax", "ymax")]
            x0, y0 = max(corners[0], 0.0), max(corners[1], 0.0)
            x1, y1 = min(corners[2], float(width)), min(corners[3], float(height))
            large = (x1 - x0) * (y1 - y0) > 0.4 * width * height
            objects.append(("large raccoon" if large else "raccoon", (x0, y0, x1, y1)))
        split = SPLITS[(0, 0, 0, 0, 0, 0, 1, 1, 2, 2)[place % 10]]
        path = folder / "images" / f"raccoon-{number}.jpg"
        found.append(Photo(path, width, height, split, tuple(objects)))
    return found
