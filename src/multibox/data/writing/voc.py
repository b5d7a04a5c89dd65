"""Writes folders in the layout of PASCAL VOC."""

import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from multibox.data.dataset import Annotation

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def make_layout(folder: Path) -> None:
    """Makes a layout folder and its subfolders."""
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)


def write_image(folder: Path, image_id: str, image: bytes, suffix: str, xml: bytes) -> None:
    """Adds an image and its annotation to a layout folder."""
    for part, name, data in (
        ("JPEGImages", f"{image_id}{suffix}", image),
        ("Annotations", f"{image_id}.xml", xml),
    ):
        path = folder / part / name
        # Ids may contain folders.
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def write_list(folder: Path, split: str, content: bytes) -> None:
    """Adds a list of images to a layout folder."""
    (folder / "ImageSets" / "Main" / f"{split}.txt").write_bytes(content)


def as_xml(tree: Element) -> bytes:
    """Returns an annotation as the content of its file."""
    return bytes(ET.tostring(tree, encoding="utf-8", xml_declaration=True)) + b"\n"


def annotation_tree(
    item: Annotation,
    classes: tuple[str, ...],
    *,
    objects: Iterable[int] | None = None,
    filename: str | None = None,
) -> Element:
    """Returns the annotation of an image.

    Args:
        item: The image and its objects.
        classes: The names of the labels.
        objects: Which objects are written. None: all.
        filename: The name of the image file. multibox does not need it, but other programs do.
    """
    tree = Element("annotation")
    set_size(tree, (item.width_px, item.height_px))
    if filename is not None:
        tree.insert(0, Element("filename"))
        tree[0].text = filename
    for place in range(len(item.labels)) if objects is None else objects:
        thing = ET.SubElement(tree, "object")
        ET.SubElement(thing, "name").text = classes[item.labels[place]]
        ET.SubElement(thing, "difficult").text = str(int(item.difficult[place]))
        box = ET.SubElement(thing, "bndbox")
        for tag, value in zip(_CORNERS, item.boxes_px[place], strict=True):
            ET.SubElement(box, tag).text = plain_number(value)
    ET.indent(tree)
    return tree


def set_size(tree: Element, size_px: tuple[int, int]) -> None:
    """Replaces an annotation's <size> with (width, height)."""
    for old in tree.findall("size"):
        tree.remove(old)
    size = Element("size")
    for name, side in zip(("width", "height", "depth"), (*size_px, 3), strict=True):
        ET.SubElement(size, name).text = str(side)
    tree.insert(0, size)


def plain_number(value: float | np.floating) -> str:
    """Returns a number without an exponent, as VOC's reader requires.

    It has as many digits as its type needs to be read again as the same number.
    """
    return np.format_float_positional(value, precision=20, trim="-")
