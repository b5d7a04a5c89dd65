"""Faults to plant in datasets: what to do to one image of a clean one, and what must be found.

The images are written by Pillow, so that what is planted is what another library calls so.
"""

import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from multibox.rng import stream

WIDTH, HEIGHT = 96, 64
CORNERS = ("xmin", "ymin", "xmax", "ymax")
SIZE = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
FLAG = "<difficult>0</difficult>"

Plant = Callable[[Path, str], None]
"""Alters what belongs to an image of a layout folder."""


def picture(seed: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    return Image.fromarray(stream(seed, "planted").integers(0, 256, (height, width, 3), "uint8"))


def encoded(image: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    stored = io.BytesIO()
    image.save(stored, form, **options)
    return stored.getvalue()


@cache
def photo(seed: int) -> bytes:
    return encoded(picture(seed))


def box(xmin: object = 10, ymin: object = 5, xmax: object = 60, ymax: object = 45) -> str:
    values = zip(CORNERS, (xmin, ymin, xmax, ymax), strict=True)
    return f"<bndbox>{''.join(f'<{tag}>{value}</{tag}>' for tag, value in values)}</bndbox>"


def thing(name: str = "cat", bndbox: str = "", flag: str = FLAG) -> str:
    return f"<object><name>{name}</name>{bndbox or box()}{flag}</object>"


def annotation(*objects: str, size: str = SIZE, head: str = "") -> str:
    return f"<annotation>{head}{size}{''.join(objects)}</annotation>"


CLEAN = annotation(thing(), thing("dog", box(30, 20, 90, 60)))


def xml_of(root: Path, image_id: str) -> Path:
    return root / "Annotations" / f"{image_id}.xml"


def image_of(root: Path, image_id: str) -> Path:
    return root / "JPEGImages" / f"{image_id}.jpg"


def write_voc(root: Path, splits: dict[str, list[str]]) -> Path:
    """Makes a layout folder of clean images of two classes."""
    for name in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (root / name).mkdir(parents=True)
    for split, ids in splits.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{i}\n" for i in ids))
        for image_id in ids:
            xml_of(root, image_id).write_text(CLEAN)
            image_of(root, image_id).write_bytes(photo(int(image_id)))
    return root


def as_xml(text: str) -> Plant:
    def plant(root: Path, image_id: str) -> None:
        xml_of(root, image_id).write_text(text)

    return plant


def as_image(data: bytes, suffix: str = ".jpg") -> Plant:
    """Puts another image in place, and removes the JPEG if it is called otherwise."""

    def plant(root: Path, image_id: str) -> None:
        image_of(root, image_id).unlink()
        image_of(root, image_id).with_suffix(suffix).write_bytes(data)

    return plant


def second(*objects: str) -> Plant:
    """Adds objects after one that is as it should be."""
    return as_xml(annotation(thing(), *objects))


def bad_corner(**corners: object) -> Plant:
    return second(thing("dog", box(**corners)))


def gone(of: Callable[[Path, str], Path]) -> Plant:
    return lambda root, image_id: of(root, image_id).unlink()


def folder_instead(root: Path, image_id: str) -> None:
    image_of(root, image_id).unlink()
    image_of(root, image_id).mkdir()


def loop_instead(root: Path, image_id: str) -> None:
    path = image_of(root, image_id)
    path.unlink()
    path.symlink_to(path.name)


def cut_to(share: float) -> Plant:
    def plant(root: Path, image_id: str) -> None:
        data = image_of(root, image_id).read_bytes()
        image_of(root, image_id).write_bytes(data[: int(len(data) * share)])

    return plant


def broken_in_the_middle(root: Path, image_id: str) -> None:
    data = bytearray(image_of(root, image_id).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40] = b"\xff\xd8" * 20
    image_of(root, image_id).write_bytes(data)


def huge_png() -> bytes:
    data = bytearray(encoded(picture(1000), "PNG"))
    data[16:24] = (30_000).to_bytes(4, "big") * 2
    return bytes(data)


def many_scans() -> bytes:
    data = encoded(picture(1001), progressive=True)
    return data[:-2] + b"\xff\xda" * 100 + data[-2:]


def turned(value: int, form: str, seed: int = 1100) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return encoded(picture(seed + value + len(form)), form, exif=exif)


def animated(form: str) -> bytes:
    frames = [picture(1200 + len(form)), picture(1210 + len(form))]
    return encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=50)


def transparent(form: str, seed: int) -> bytes:
    image = picture(seed)
    image.putalpha(Image.fromarray(np.tile(np.arange(WIDTH, dtype="uint8"), (HEIGHT, 1))))
    return encoded(image, form, **({"lossless": True} if form == "WEBP" else {}))


def deep(seed: int) -> bytes:
    levels = stream(seed, "deep").integers(0, 65536, (HEIGHT, WIDTH), "uint16")
    return encoded(Image.fromarray(levels), "PNG")


def palette_with_clear_colour() -> bytes:
    return encoded(picture(1300).quantize(16), "PNG", transparency=3)


def of_size(width: int, height: int, seed: int) -> Plant:
    """An image of that size, with an annotation that fits it."""

    def plant(root: Path, image_id: str) -> None:
        as_image(encoded(picture(seed, width, height), "PNG"))(root, image_id)
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        xml_of(root, image_id).write_text(annotation(thing(bndbox=box(2, 2, 9, 9)), size=size))

    return plant


def second_file(suffix: str) -> Plant:
    def plant(root: Path, image_id: str) -> None:
        image_of(root, image_id).with_suffix(suffix).write_bytes(photo(1400))

    return plant


def other_size(width: object, height: object) -> Plant:
    return as_xml(
        annotation(thing(), size=f"<size><width>{width}</width><height>{height}</height></size>")
    )


def plain_grey(value: int) -> bytes:
    return encoded(Image.new("RGB", (WIDTH, HEIGHT), (value, value, value)), "PNG")


DTD = "<!DOCTYPE annotation>"
ENTITY = '<!DOCTYPE a [<!ENTITY b "c">]>'
NEAR = thing("cat", box(10, 5, 61, 45))

# What is planted in one image: it must be found there, and nothing else anywhere.
VOC: list[tuple[str, Plant]] = [
    ("image-missing", gone(image_of)),
    ("annotation-missing", gone(xml_of)),
    ("image-empty", as_image(b"")),
    *[
        ("image-format", as_image(d))
        for d in (b"text", b"GIF89a" + bytes(90), b"II+\0" + bytes(90))
    ],
    ("image-header", as_image(b"\xff\xd8\xff" + bytes(200))),
    ("image-header", as_image(b"\x89PNG\r\n\x1a\n" + bytes(200))),
    *[
        ("image-damaged", cut_to(share))
        for share in (*(share / 10 for share in range(3, 10)), 0.95, 0.98, 0.99)
    ],
    ("image-damaged", broken_in_the_middle),
    ("image-damaged", as_image(encoded(picture(1002), "PNG")[:-900])),
    ("image-damaged", as_image(encoded(picture(1003), "BMP")[:-900])),
    ("image-damaged", as_image(encoded(picture(1004), "WEBP")[:-900])),
    ("image-too-large", as_image(huge_png())),
    ("too-many-scans", as_image(many_scans())),
    ("not-a-file", folder_instead),
    ("unreadable", loop_instead),
    *[("xml-malformed", as_xml(text)) for text in ("", CLEAN[:-20], CLEAN * 2, "\0", "cat")],
    ("xml-malformed", as_xml('<?xml version="1.0" encoding="klingon"?><annotation/>')),
    *[("xml-dtd", as_xml(text)) for text in (DTD + CLEAN, ENTITY + "<annotation>&b;</annotation>")],
    *[("xml-root", as_xml(f"<{tag}>{SIZE}</{tag}>")) for tag in ("annotations", "data", "object")],
    ("file-too-large", as_xml(CLEAN.replace("<size>", " " * 2**20 + "<size>"))),
    ("field-missing", second("<object><name>cat</name></object>")),
    ("field-missing", second(f"<object>{box()}</object>")),
    ("field-missing", second(thing(bndbox="<bndbox><xmin>1</xmin></bndbox>"))),
    ("field-missing", as_xml(annotation(thing(), size="<size><width>96</width></size>"))),
    ("field-repeated", second(thing(bndbox=box() + box()))),
    ("field-repeated", second(thing("cat</name><name>dog"))),
    ("field-repeated", second(thing(bndbox=box("1</xmin><xmin>2")))),
    *[
        ("number-malformed", bad_corner(**{corner: text}))
        for corner in CORNERS
        for text in (
            *("1e", "nan", "inf", "", "0x20", "4_0", "4,5", "\uff14", "ten", "9" * 50, "+5"),
            *(".5", "5.", "5 6", "--5", "5px", "1/2", "\u0665", "\u221e", "None", "True", "1e999"),
        )
    ],
    ("number-malformed", other_size("wide", 64)),
    *[("name-empty", second(thing(name))) for name in ("", " ", "\n", "\t ")],
    *[
        ("difficult-malformed", second(thing("dog", flag=f"<difficult>{text}</difficult>")))
        for text in ("yes", "2", "-1", "true", "0.0", "no", "False", "00", "1 0", "o")
    ],
    *[("size-differs", other_size(w, h)) for w, h in ((64, 96), (95, 64), (96, 65), (9600, 640))],
    *[
        ("box-outside", bad_corner(**corners))
        for corners in (
            *(
                {"xmin": -2},
                {"ymin": -1.5},
                {"xmax": 98},
                {"ymax": 66},
                {"xmax": 10**9},
                {"ymax": 10**11},
            ),
            *({"xmin": 120, "xmax": 150}, {"ymin": 70, "ymax": 90}, {"xmin": -50, "xmax": -9}),
        )
    ],
    *[
        ("box-empty", bad_corner(**corners))
        for corners in (
            *({"xmin": 60}, {"ymin": 45}, {"xmin": 61}, {"ymax": 4}, {"xmax": 0}, {"ymax": 0}),
            *({"xmin": 96, "xmax": 97}, {"xmin": 0, "xmax": 0, "ymin": 0, "ymax": 0}),
        )
    ],
    *[("exif-rotation", as_image(turned(value, "JPEG"))) for value in range(2, 9)],
    *[("exif-rotation", as_image(turned(value, "PNG"), ".png")) for value in range(2, 9)],
    *[("exif-rotation", as_image(turned(value, "WEBP"), ".webp")) for value in range(2, 9)],
    *[("cmyk", as_image(encoded(picture(s).convert("CMYK")))) for s in (1010, 1011)],
    ("alpha", as_image(transparent("PNG", 1012), ".png")),
    ("alpha", as_image(transparent("WEBP", 1013), ".webp")),
    ("alpha", as_image(palette_with_clear_colour(), ".png")),
    ("animated", as_image(animated("PNG"), ".png")),
    ("animated", as_image(animated("WEBP"), ".webp")),
    ("suffix-differs", as_image(encoded(picture(1014), "PNG"))),
    ("suffix-differs", as_image(encoded(picture(1015), "BMP"), ".webp")),
    ("suffix-differs", as_image(photo(1016), ".png")),
    ("grey", as_image(encoded(picture(1017).convert("L")))),
    ("grey", as_image(encoded(picture(1018).convert("L"), "PNG"), ".png")),
    ("image-blank", as_image(encoded(Image.new("RGB", (WIDTH, HEIGHT), (7, 7, 7))))),
    ("ambiguous-image", second_file(".png")),
    ("ambiguous-image", second_file(".webp")),
    ("duplicate-object", second(thing())),
    ("duplicate-object", second(thing("dog", box(3, 3, 9, 60)), thing())),
    ("nearly-duplicate-object", second(NEAR)),
    ("nearly-duplicate-object", second(thing("cat", box(10.5, 5.5, 59.5, 44.5)))),
    ("box-of-two-classes", second(thing("dog"))),
    *[
        ("box-clipped", bad_corner(**corners))
        for corners in ({"xmax": 97}, {"ymax": 64.5}, {"xmin": -1}, {"ymin": -0.5, "xmin": -1})
    ],
    *[
        ("tiny-box", bad_corner(**corners))
        for corners in ({"xmax": 10.5}, {"ymax": 5.25}, {"xmin": 59.75, "ymin": 44.75})
    ],
    *[("difficult-missing", second(thing("dog", box(3, 3, 9, 60), flag=""))) for _ in range(3)],
    *[
        ("filename-differs", as_xml(CLEAN.replace("<size>", f"<filename>{name}</filename><size>")))
        for name in ("other.jpg", "99999.jpg", "a/b/c.png", "7")
    ],
    ("size-missing", as_xml(CLEAN.replace(SIZE, ""))),
]
# Two kinds at once.
BOTH: list[tuple[set[str], Plant]] = [
    ({"sixteen-bit", "grey"}, as_image(deep(1), ".png")),
    ({"suffix-differs", "image-small"}, of_size(20, 40, 1020)),
    ({"suffix-differs", "image-small"}, of_size(300, 31, 1021)),
    ({"suffix-differs", "image-blank"}, as_image(plain_grey(9))),
    ({"box-empty", "box-outside"}, second(thing(bndbox=box(5, 5, 5, 9)), thing(bndbox=box(-9)))),
    ({"exif-rotation", "suffix-differs"}, as_image(turned(4, "PNG", 1150))),
]


def coco_thing(number: int, **changes: object) -> dict[str, Any]:
    fields = {"id": number, "image_id": number % 1000, "category_id": 1, "bbox": [10, 5, 50, 40]}
    return fields | {"iscrowd": 0} | changes


def coco_content(images: int, first: int = 1) -> dict[str, Any]:
    """Clean images of a cat and a dog each; object 1000 + n is the second of image n."""
    numbers = range(first, first + images)
    return {
        "images": [
            {"id": n, "file_name": f"{n}.jpg", "width": WIDTH, "height": HEIGHT} for n in numbers
        ],
        "annotations": [
            record
            for n in numbers
            for record in (
                coco_thing(n),
                coco_thing(1000 + n, category_id=2, bbox=[30, 20, 60, 40]),
            )
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


def write_coco(root: Path, content: dict[str, Any] | str, split: str = "train") -> Path:
    """Writes annotations, and the images that have plain names."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / split).mkdir(exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (root / "annotations" / f"instances_{split}.json").write_text(text)
    for record in content["images"] if isinstance(content, dict) else []:
        name = record["file_name"]
        (root / split / name).write_bytes(photo(int(name.partition(".")[0])))
    return root


# Changes of an annotation of COCO's, each the only thing wrong with it.
COCO_OBJECTS: list[tuple[str, dict[str, object]]] = [
    *[("number-malformed", {"image_id": value}) for value in (None, "", 1.5, True)],
    *[("number-malformed", {"category_id": value}) for value in (None, " ", 1.5, False)],
    *[("box-fractions", {"bbox": value}) for value in ([0.2, 0.3, 0.4, 0.7], [0, 0, 1, 1])],
    *[("box-fractions", {"bbox": value}) for value in ([0.5, 0.5, 0.001, 0.2], [0, 0.1, 1, 0.1])],
    *[("image-unknown", {"image_id": value}) for value in (-1, 0, 10**6, 10**30)],
    *[("category-unknown", {"category_id": value}) for value in (-1, 0, 3, 10**30, "cat")],
    *[
        ("bbox-malformed", {"bbox": value})
        for value in (
            *(None, [], [1, 2, 3], [1, 2, 3, 4, 5], ["1", 2, 3, 4], {"x": 1}, "1 2 3 4"),
            *([1, 2, 3, None], [1, 2, True, 4], [1, 2, float("nan"), 4], [1, 2, 1e300, 4]),
        )
    ],
    *[("difficult-malformed", {"iscrowd": value}) for value in (2, -1, "", "no", [], 0.5)],
    *[
        ("box-empty", {"bbox": value})
        for value in ([1, 1, 0, 5], [1, 1, 5, 0], [9, 9, -3, 4], [9, 9, 4, -3], [0, 0, 0, 0])
    ],
    *[
        ("box-outside", {"bbox": value})
        for value in ([-3, 1, 9, 9], [1, -3, 9, 9], [90, 1, 9, 9], [1, 60, 9, 9], [200, 200, 5, 5])
    ],
]
COCO_IMAGES: list[tuple[str, dict[str, object]]] = [
    *[("text-malformed", {"file_name": value}) for value in (None, "", 7, "a\nb")],
    *[
        ("listed-twice", {"file_name": value})
        for value in ("../1.jpg", "/1.jpg", "a\\1.jpg", "deep/1.jpg", "1.jpg")
    ],
    *[("size-differs", {"width": 64, "height": 96}), ("size-differs", {"width": 97})],
    *[("number-malformed", {key: "wide"}) for key in ("width", "height")],
    *[("size-too-large", {key: 10**10}) for key in ("width", "height")],
    *[
        ("image-missing", {"file_name": name})
        for name in ("none.jpg", "1.jpeg", "a/..", "/etc/passwd")
    ],
]
