"""Fuzz targets: annotations and lists of each format, and what `check` finds."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from fuzz import values
from fuzz.choices import TEXTS, Choices, damaged

from multibox.data.check.dataset_checks import check_dataset
from multibox.data.dataset import Dataset
from multibox.data.formats.layouts import open_dataset, read_dataset
from multibox.data.formats.voc import read_voc

WIDTH, HEIGHT = 40, 30
IDS = ("a", "b", "c")
_TAGS = (
    *("annotation", "folder", "filename", "source", "size", "width", "height", "depth", "object"),
    *("name", "pose", "difficult", "truncated", "bndbox", "xmin", "ymin", "xmax", "ymax", "part"),
)
_MORE_TAGS = (
    *("polygon", "pt", "x", "y", "robndbox", "cx", "w", "angle", "deleted", "imagesize", "path"),
    *(
        "image",
        "track",
        "mask",
        "ellipse",
        "points",
        "label",
        "labels",
        "meta",
        "task",
        "attribute",
    ),
)
_DTDS = (
    '<!DOCTYPE annotation [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>',
    '<!DOCTYPE annotation SYSTEM "file:///etc/passwd">',
    '<!DOCTYPE annotation [<!ENTITY a SYSTEM "file:///etc/passwd">]>',
    '<!DOCTYPE a [<!ENTITY % p SYSTEM "http://127.0.0.1/x"> %p;]>',
    "<!-- nothing -->",
    "<?xml-stylesheet href='http://127.0.0.1/x'?>",
)
_ENCODINGS = ("utf-8-sig", "utf-16", "latin-1", "ascii", "utf-32")

Node = list
"""[tag, text, children]"""
_MOST_NODES = 3_000


def _seed() -> Node:
    """An annotation with two objects, of which one has a body part."""

    def leaf(tag: str, text: object) -> Node:
        return [tag, str(text), []]

    def box(*corners: float) -> Node:
        tags = ("xmin", "ymin", "xmax", "ymax")
        return ["bndbox", "", [leaf(tag, x) for tag, x in zip(tags, corners, strict=True)]]

    part = ["part", "", [leaf("name", "head"), box(2, 2, 8, 8)]]
    size = [leaf("width", WIDTH), leaf("height", HEIGHT), leaf("depth", 3)]
    cat = [leaf("name", "cat"), leaf("pose", "Left"), leaf("difficult", 0), box(1, 1, 20, 28)]
    dog = [leaf("name", "dog"), leaf("difficult", 1), box(5.5, 4, 40, 30), part]
    children = [leaf("folder", "x"), leaf("filename", "a.jpg"), ["size", "", size]]
    return ["annotation", "", [*children, ["object", "", cat], ["object", "", dog]]]


def _loose_seed() -> Node:
    """An annotation as other tools write it: outlines, a rotated box, a path."""
    root = _seed()
    points = [
        ["pt", "", [["x", "3", []], ["y", "4", []]]],
        ["pt", "", [["x", "9", []], ["y", "8", []]]],
    ]
    rotated = [
        [tag, str(x), []] for tag, x in (("cx", 20), ("cy", 15), ("w", 9), ("h", 4), ("angle", 0.7))
    ]
    root[2] += [
        ["path", "C:\\pictures\\a.jpg", []],
        ["object", "", [["name", "owl", []], ["polygon", "", points]]],
        ["object", "", [["name", "owl", []], ["robndbox", "", rotated]]],
    ]
    return root


def _cvat_seed() -> Node:
    """CVAT's annotations of two images, and of a video of which a frame has an image."""
    size = f'width="{WIDTH}" height="{HEIGHT}"'
    corners = 'xtl="1.5" ytl="2.00" xbr="20" ybr="28"'
    labels = [["label", "", [["name", name, []]]] for name in ("dog", "cat")]
    task = [["size", "3", []], ["labels", "", labels]]
    shapes = [
        [f'box label="cat" occluded="0" {corners} rotation="30.0"', "", []],
        ['polygon label="dog" points="1,2;30.5,4;9,9"', "", []],
        ['ellipse label="dog" cx="20" cy="15" rx="9" ry="5" rotation="10"', "", []],
        ['mask label="dog" rle="1,2" left="3" top="4" width="9" height="8"', "", []],
        ['points label="dog" points="1,2"', "", []],
    ]
    more = [[f'box label="cat" {corners}', "", [['attribute name="difficult"', "true", []]]]]
    frame = [f'box frame="1" outside="0" {corners}', "", []]
    gone = [f'box frame="2" outside="1" {corners}', "", []]
    return [
        "annotations",
        "",
        [
            ["version", "1.1", []],
            ["meta", "", [["task", "", task]]],
            [f'image id="0" name="x/a.jpg" {size}', "", shapes],
            [f'image id="1" name="b.jpg" subset="train" {size}', "", more],
            ['track id="0" label="dog"', "", [frame, gone]],
        ],
    ]


_VALUE = re.compile(r'="[^"]*"')


def _change_attribute(root: Node, choices: Choices) -> None:
    places = [(parent, place) for parent, place in _nodes(root) if "=" in parent[2][place][0]]
    if not places or len(places) > _MOST_NODES:
        return
    parent, place = choices.pick(places)
    node = parent[2][place]
    found = choices.pick(list(_VALUE.finditer(node[0])) or [None])
    if found is None:
        return
    text = choices.pick((*TEXTS, "1,2;3", ",", ";", "1,2,3", "-5", "39", "1e5", "frame_000001"))
    value = _escaped(text).replace('"', "&quot;")
    node[0] = f'{node[0][: found.start()]}="{value}"{node[0][found.end() :]}'


def _nodes(parent: Node) -> list[tuple[Node, int]]:
    found = []
    for place, child in enumerate(parent[2]):
        found.append((parent, place))
        found += _nodes(child)
    return found


def _copied(node: Node) -> Node:
    return [node[0], node[1], [_copied(child) for child in node[2]]]


def _change(root: Node, choices: Choices) -> None:
    places = _nodes(root)
    if not places or len(places) > _MOST_NODES:
        return
    parent, place = choices.pick(places)
    node = parent[2][place]
    match choices.below(10):
        case 0 | 1 | 2:
            node[1] = _escaped(choices.pick(TEXTS))
        case 3:
            node[1] = str(choices.pick((-1, 0, 1, WIDTH, WIDTH + 1, WIDTH + 2, HEIGHT, 41.5, 1e5)))
        case 4:
            del parent[2][place]
        case 5:
            copy, most = _copied(node), _MOST_NODES // (1 + len(_nodes(node)))
            parent[2][place:place] = [copy] * min(most, choices.pick((1, 1, 2, 50, 2000)))
        case 6:
            node[0] = choices.pick((*_TAGS, *_MORE_TAGS))
        case 7:
            other, _ = choices.pick(places)
            other[2].append(_copied(node))
        case 8:
            node[1] = choices.pick(
                ("&a;", "&#0;", "&#55296;", "<![CDATA[5]]>", "<!--x-->1", "&lt;")
            )
        case _:
            node[0] = f'{node[0]} xmlns="urn:x"' if choices.one_in(2) else "x:" + node[0]


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _xml(node: Node) -> str:
    inner = "".join(map(_xml, node[2]))
    return f"<{node[0]}>{node[1]}{inner}</{node[0].partition(' ')[0]}>"


def xml(choices: Choices, seed: Callable[[], Node] = _seed) -> bytes:
    """Returns an annotation with some changes."""
    root = seed()
    for _ in range(choices.below(5)):
        change = _change_attribute if seed is _cvat_seed and choices.one_in(2) else _change
        change(root, choices)
    # Some times what is read at most; more would only take the time to make it.
    text = _xml(root)[: 4 << 20]
    if choices.one_in(16):
        depth, tag = choices.pick((10, 1_000, 50_000)), choices.pick(("object", "bndbox", "size"))
        deep = f"<{tag}>" * depth + f"</{tag}>" * depth
        text = text.replace("<object>", "<object>" + deep, 1)
    if choices.one_in(12):
        text = choices.pick(_DTDS) + text
    if choices.one_in(16):
        encoding = choices.pick((*_ENCODINGS, "punycode", "idna", "utf-7", "no-such", "zlib_codec"))
        text = f"<?xml version='1.0' encoding='{encoding}'?>{text}"
    data = text.encode("utf-8", "surrogatepass")
    if choices.one_in(16):
        data = text.encode(choices.pick(_ENCODINGS), "replace")
    return damaged(data, choices) if choices.one_in(16) else data


def image() -> bytes:
    pixels = np.arange(WIDTH * HEIGHT * 3, dtype=np.uint32).reshape(HEIGHT, WIDTH, 3)
    return simplejpeg.encode_jpeg((pixels % 251).astype(np.uint8))


def _lay_out(folder: Path) -> Path:
    root = folder / "voc"
    if not root.exists():
        for name in ("ImageSets/Main", "Annotations", "JPEGImages"):
            (root / name).mkdir(parents=True)
        for image_id in IDS:
            (root / "Annotations" / f"{image_id}.xml").write_text(_xml(_seed()))
            (root / "JPEGImages" / f"{image_id}.jpg").write_bytes(image())
    (root / "ImageSets/Main/trainval.txt").write_text("a\n")
    return root


def _check(dataset: Dataset, root: Path) -> None:
    """What holds of a dataset whatever it was read from."""
    assert len(dataset) > 0
    assert len({item.image_path for item in dataset.annotations}) == len(dataset)
    inside = root.resolve()
    for item in dataset.annotations:
        count = len(item.labels)
        assert item.image_path.resolve().is_relative_to(inside)
        assert 0 < item.width_px <= 1e12
        assert 0 < item.height_px <= 1e12
        assert item.boxes_px.shape == (count, 4)
        assert item.difficult.shape == (count,)
        assert np.isfinite(item.boxes_px).all()
        assert (item.boxes_px[:, :2] >= 0).all()
        assert (item.boxes_px[:, 2:] > item.boxes_px[:, :2]).all()
        assert (item.boxes_px[:, 2:] <= (item.width_px, item.height_px)).all()
        assert ((item.labels >= 0) & (item.labels < len(dataset.classes))).all()
        assert np.isfinite(item.boxes).all()
    assert len(set(dataset.classes)) == len(dataset.classes)
    assert all(name.strip() for name in dataset.classes)
    assert len(dataset.digest) == 16
    assert sum(dataset.objects_per_class.values()) == sum(
        len(item.labels) for item in dataset.annotations
    )
    for fault in dataset.faults:
        assert str(fault).isprintable()


def _read(root: Path, choices: Choices) -> None:
    how = choices.pick((("check", "skip"), ("ignore", "skip"), ("check", "fail")))
    _check(read_voc(root, "trainval", images=how[0], on_bad=how[1]), root)


def voc_xml(choices: Choices, folder: Path) -> None:
    """An annotation, read as part of a folder."""
    root = _lay_out(folder)
    (root / "Annotations" / "a.xml").write_bytes(xml(choices))
    _read(root, choices)


def _list(choices: Choices) -> bytes:
    lines = list(IDS)
    for _ in range(choices.below(6)):
        place = choices.below(len(lines))
        match choices.below(6):
            case 0:
                lines[place] = choices.pick(TEXTS)
            case 1:
                lines.insert(place, choices.pick((*IDS, *TEXTS)))
            case 2:
                lines[place] += choices.pick((" 1", " -1", "  0", " 2", "\t1", " x", "\x0b1"))
            case 3:
                lines.append(lines[place])
            case 4:
                lines[place] = choices.pick(("\ufeff", " ", "\x00", "../", "./")) + lines[place]
            case _:
                lines += [choices.pick(TEXTS) + str(number) for number in range(300)]
    text = choices.pick(("\n", "\r\n", "\r", "\x1c", "\u2028")).join(lines)
    data = text.encode(choices.pick(("utf-8", "utf-8-sig", "utf-16")), "surrogatepass")
    return damaged(data, choices) if choices.one_in(8) else data


def image_sets(choices: Choices, folder: Path) -> None:
    """A list of images."""
    root = _lay_out(folder)
    (root / "ImageSets/Main/trainval.txt").write_bytes(_list(choices))
    _read(root, choices)


def voc_files(choices: Choices, folder: Path) -> None:
    """Annotations that lie beside images or in another folder, some of them in a list."""
    root = folder / "files"
    if not root.exists():
        for part in ("images/train", "xml"):
            (root / part).mkdir(parents=True)
        for image_id in IDS:
            (root / "images" / f"{image_id}.jpg").write_bytes(image())
            (root / "xml" / f"{image_id}.xml").write_text(_xml(_loose_seed()))
        (root / "images" / "train" / "photo.jpg").write_bytes(image())
    (root / "xml" / "a.xml").write_bytes(xml(choices, _loose_seed))
    other = root / choices.pick(("xml/photo.xml", "xml/e.xml", "images/b.xml"))
    lists = root / "train.txt"
    if choices.one_in(2):
        other.write_bytes(xml(choices, _loose_seed))
    if choices.one_in(3):
        lists.write_bytes(_list(choices))
    try:
        read_all(root, choices)
    finally:
        other.unlink(missing_ok=True)
        lists.unlink(missing_ok=True)


def cvat_xml(choices: Choices, folder: Path) -> None:
    """CVAT's annotations."""
    root = folder / "cvat"
    if not root.exists():
        (root / "images" / "train").mkdir(parents=True)
        for name in ("images/a", "images/train/b", "images/frame_000001", "images/frame_000002"):
            (root / f"{name}.jpg").write_bytes(image())
    (root / "annotations.xml").write_bytes(xml(choices, _cvat_seed))
    read_all(root, choices)


def read_all(root: Path, choices: Choices) -> None:
    how = choices.pick((("check", "skip"), ("ignore", "skip"), ("check", "fail")))
    known = open_dataset(root)
    for split in known.splits[:4]:
        _check(known.read(split, images=how[0], on_bad=how[1]), root)


def _coco_seed() -> str:
    size = {"width": WIDTH, "height": HEIGHT}
    images = [{"id": n, "file_name": f"{name}.jpg"} | size for n, name in enumerate(IDS)]
    things = [
        {"id": 1, "image_id": 0, "category_id": 3, "bbox": [1, 2, 10.5, 20], "iscrowd": 0},
        {"id": 2, "image_id": 0, "category_id": 7, "bbox": [0, 0, 40, 30], "iscrowd": 1},
        {"id": 5, "image_id": 2, "category_id": 3, "bbox": [4, 4, 4, 4], "segmentation": [[1, 2]]},
        {"image_id": 2, "category_id": 3, "segmentation": [[1, 2, 9, 2, 9.5, 20]]},
        {"image_id": 2, "category_id": 7, "segmentation": {"size": [30, 40], "counts": [90, 40]}},
        {"image_id": 2, "category_id": 7, "segmentation": {"size": [30, 40], "counts": "Z2X1"}},
    ]
    kinds = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 90, "name": "none"}]
    return json.dumps(
        {"info": {"year": 2017}, "images": images, "annotations": things, "categories": kinds}
    )


COCO_SEED = _coco_seed()


_HOW = (("check", "skip"), ("ignore", "skip"), ("check", "fail"))


def _read_folder(root: Path, split: str, choices: Choices) -> None:
    how = choices.pick(_HOW)
    _check(read_dataset(root, split, images=how[0], on_bad=how[1]), root)


def _images_in(folder: Path) -> None:
    if not folder.exists():
        folder.mkdir(parents=True)
        for image_id in IDS:
            (folder / f"{image_id}.jpg").write_bytes(image())


def coco_json(choices: Choices, folder: Path) -> None:
    """A file of instances in a folder, with COCO's own name or recognised by its content."""
    root = folder / "coco"
    _images_in(root / "train")
    data = values.mutated_bytes(COCO_SEED, choices)
    names = ("instances_train.json", "train.json")
    chosen = choices.pick(names)
    for name in names:
        (root / name).unlink(missing_ok=True)
    (root / chosen).write_bytes(data)
    _read_folder(root, "train", choices)


def _labelme_seed() -> str:
    shapes = [
        {"label": "cat", "points": [[1, 2], [11.5, 22]], "shape_type": "rectangle"},
        {"label": "dog", "points": [[30, 20], [4, 5], [6, 29]], "shape_type": "polygon"},
        {"label": "dog", "points": [[20, 15], [25, 15]], "shape_type": "circle", "group_id": 1},
        {"label": "dog", "points": [[2, 2], [9, 9]], "shape_type": "mask", "group_id": 1},
        {"label": "ear", "points": [[2, 2]], "shape_type": "point", "difficult": True},
    ]
    image = {"imagePath": "..\\images\\a.jpg", "imageData": "/9j/4AAQ"}
    size = {"imageHeight": HEIGHT, "imageWidth": WIDTH}
    return json.dumps({"version": "5.5.0", "flags": {}, "shapes": shapes} | image | size)


LABELME_SEED = _labelme_seed()


def labelme_json(choices: Choices, folder: Path) -> None:
    """An annotation of LabelMe's beside one that is as it should be."""
    root = folder / "labelme"
    _images_in(root / "images")
    (root / "labels").mkdir(exist_ok=True)
    (root / "labels" / "b.json").write_text(LABELME_SEED.replace("a.jpg", "b.jpg"))
    (root / "labels" / "a.json").write_bytes(values.mutated_bytes(LABELME_SEED, choices))
    _read_folder(root, "all", choices)


def _label_studio_seed(*, minimal: bool) -> str:
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    box = {"x": 10, "y": 20.5, "width": 30, "height": 40, "rotation": 0}
    shapes = [
        box | {"rectanglelabels": ["cat"]},
        box | {"rectanglelabels": ["cat", "dog"], "rotation": 15},
        {"points": [[10, 10], [50.5, 20], [30, 90]], "polygonlabels": ["dog"]},
        {"x": 50, "y": 50, "radiusX": 10, "radiusY": 20, "rotation": 5, "ellipselabels": ["dog"]},
        {"x": 50, "y": 50, "width": 0.4, "keypointlabels": ["ear"]},
    ]
    names = ["/data/upload/1/1a2b3c4d-a.jpg", "s3://x/b.jpg", "/data/local-files/?d=images/c.jpg"]
    if minimal:
        rows = [{"image": name, "label": [each | size for each in shapes]} for name in names]
        return json.dumps([row | {"annotator": 1, "annotation_id": 2, "id": 5} for row in rows])
    results = [
        {"id": str(place), "from_name": "label", "type": list(each)[-1], "value": each} | size
        for place, each in enumerate(shapes)
    ]
    found = [
        {"id": 1, "result": [], "was_cancelled": True},
        {"id": 2, "result": results, "was_cancelled": False},
    ]
    tasks = [{"id": 4, "annotations": found, "data": {"img": name, "n": 1}} for name in names]
    return json.dumps(tasks)


LABEL_STUDIO_SEEDS = (_label_studio_seed(minimal=False), _label_studio_seed(minimal=True))


def label_studio_json(choices: Choices, folder: Path) -> None:
    """An export of Label Studio's in one of its two forms."""
    root = folder / "label-studio"
    _images_in(root / "images")
    seed = choices.pick(LABEL_STUDIO_SEEDS)
    (root / "export.json").write_bytes(values.mutated_bytes(seed, choices))
    _read_folder(root, "all", choices)


def check_verb(choices: Choices, folder: Path) -> None:
    """A folder of which annotation, list and image are changed, in a preflight."""
    root = _lay_out(folder)
    (root / "Annotations" / "a.xml").write_bytes(xml(choices))
    (root / "ImageSets/Main/trainval.txt").write_bytes(_list(choices))
    data = image()
    if choices.one_in(3):
        pixels = np.full((HEIGHT, WIDTH, choices.pick((1, 3, 4))), 7, np.uint8)
        data = cv2.imencode(choices.pick((".png", ".bmp", ".webp")), pixels)[1].tobytes()
    if choices.one_in(3):
        data = damaged(data, choices)
    (root / "JPEGImages" / "b.jpg").write_bytes(data)
    found = check_dataset(root, (), (), workers=1, progress=lambda *_: None)
    for dataset in found.datasets.values():
        _check(dataset, root)
    for finding in found.findings:
        assert finding.reason
