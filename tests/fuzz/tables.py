"""Fuzz targets: annotations as plain text. YOLO's label files and descriptions, and CSV tables."""

from pathlib import Path

from fuzz.annotations import IDS, _check, image
from fuzz.choices import TEXTS, Choices, damaged

from multibox.data.formats.layouts import read_dataset

_NUMBERS = (
    *("0", "1", "-1", "0.5", "1.0", "0.25", ".5", "5e-1", "1e-9", "1.0000001", "2", "39", "41"),
    *("1e999", "nan", "-inf", "1_0", "0x1p3", "\u0661", "9" * 400, "1" + "0" * 9, "-0", "1,5", ""),
)
_ENCODINGS = ("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1")
_BREAKS = ("\n", "\n", "\n", "\r\n", "\r", "\x1c", "\u2028")

_YAMLS = (
    "train: images\nval: images\nnames: [cat, dog]\n",
    "path: /home/x\ntrain: [images]\nnames:\n  0: cat\n  1: no\nnc: 2\n",
    "train: list.txt\nnames: {0: cat, '1': dog}\nkpt_shape: [1, 3]\n",
    "nc: 2\nnames:\n- cat\n- dog\n",
)
_YAML_PARTS = (
    *("!!python/object/apply:os.system [x]", "!x y", "&a [1]", "*a", "? x", "<<: *a", "--- "),
    *("[" * 3_000, "{a: " * 3_000, "- " * 3_000, "[a]: b", "nc: 3", "names: 5", "train: 5", "[]"),
    *("names: {}", "names: [[]]", "train: ../..", "train: /etc", "path: /", "val: .", "%YAML 9.9"),
    *("kpt_shape: [1e9, 1e9]", "names: ['a', 'a']", '"\\x00"', "|\n  x", ">-\n  y", "{}", "\t"),
)
_OBJ_DATA = "classes = 2\ntrain = data/list.txt\nnames = data/obj.names\nbackup = x/\n"


def _mutated_lines(text: str, choices: Choices, parts: tuple[str, ...]) -> bytes:
    """Returns a text after changes of its words and lines."""
    lines = text.splitlines()
    for _ in range(choices.below(5)):
        if not lines:
            break
        place = choices.below(len(lines))
        words = lines[place].split(" ")
        match choices.below(9):
            case 0:
                words[choices.below(len(words))] = choices.pick(parts)
            case 1:
                words[choices.below(len(words))] = choices.pick(TEXTS)
            case 2:
                words.insert(choices.below(len(words)), choices.pick(parts))
            case 3:
                del words[choices.below(len(words))]
            case 4:
                words *= choices.pick((2, 3, 50))
            case 5:
                lines.insert(place, choices.pick((*parts, *TEXTS)))
            case 6:
                lines[place:place] = [lines[place]] * choices.pick((1, 2, 300))
                continue
            case 7:
                del lines[place]
                continue
            case _:
                words = list(lines[place][::-1])
        lines[place] = " ".join(words)[: 1 << 16]
    data = choices.pick(_BREAKS).join(lines).encode(choices.pick(_ENCODINGS), "replace")
    return damaged(data, choices) if choices.one_in(12) else data


def _images(root: Path, folder: str) -> None:
    if not root.exists():
        (root / folder).mkdir(parents=True)
        for image_id in IDS:
            (root / folder / f"{image_id}.jpg").write_bytes(image())


def _read(root: Path, choices: Choices, splits: tuple[str, ...]) -> None:
    how = choices.pick((("check", "skip"), ("ignore", "skip"), ("check", "fail")))
    _check(read_dataset(root, choices.pick(splits), images=how[0], on_bad=how[1]), root)


def yolo_labels(choices: Choices, folder: Path) -> None:
    """Label files, beside a description that is intact."""
    root = folder / "yolo"
    _images(root, "images")
    (root / "labels").mkdir(exist_ok=True)
    (root / "data.yaml").write_text(choices.pick(_YAMLS))
    (root / "list.txt").write_text("images/a.jpg\nimages/b.jpg\n")
    text = "0 0.5 0.5 0.25 0.5\n1 0.1 0.1 0.4 0.1 0.3 0.9\n0 0.5 0.5 1 1\n"
    (root / "labels" / "a.txt").write_bytes(_mutated_lines(text, choices, _NUMBERS))
    (root / "labels" / "b.txt").write_text("0.0 0.5 0.5 0.1 0.1\n")
    _read(root, choices, ("train", "all"))


def yolo_description(choices: Choices, folder: Path) -> None:
    """A YAML file, `obj.data`, a list of images and class names, beside label files."""
    root = folder / "yolo-description"
    _images(root, "images")
    (root / "labels").mkdir(exist_ok=True)
    for image_id in IDS:
        (root / "labels" / f"{image_id}.txt").write_text("0 0.5 0.5 0.25 0.5\n")
    for name in ("data.yaml", "obj.data", "obj.names", "classes.txt", "notes.json"):
        (root / name).unlink(missing_ok=True)
    (root / "list.txt").write_bytes(_mutated_lines("images/a.jpg\n./b.jpg\nc\n", choices, TEXTS))
    names = _mutated_lines("cat\ndog\n", choices, TEXTS)
    match choices.below(4):
        case 3:
            (root / choices.pick(("classes.txt", "obj.names"))).write_bytes(names)
        case 2:
            text = '{"categories": [{"id": 0, "name": "cat"}]}'
            (root / "notes.json").write_bytes(_mutated_lines(text, choices, (*TEXTS, "[" * 3_000)))
        case 1:
            (root / "obj.data").write_bytes(_mutated_lines(_OBJ_DATA, choices, TEXTS))
            (root / "obj.names").write_bytes(names)
        case _:
            text = choices.pick(_YAMLS)
            (root / "data.yaml").write_bytes(_mutated_lines(text, choices, _YAML_PARTS))
    _read(root, choices, ("train", "all", "val"))


_TABLES = (
    "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,40,30,cat,1,2,30,20\n"
    "b.jpg,40,30,dog,5,6,7,8\na.jpg,40,30,1,0,0,40,30\n",
    "x/a.jpg,1,2,30,20,cat\nb.jpg,,,,,\nc.jpg,5,6,7,8,dog\n",
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf\na,x,/m/1,1,.1,.5,.2,1,0\n"
    "b,x,/m/2,1,0,1,0,1,1\nc,,cat,,0.2,0.4,0.2,0.4,-1\n",
    'image_id;width;height;bbox;split\na;40;30;"[1, 2, 30, 20]";train\nb;40;30;"[0,0,4,4]";test\n',
)
_HEADERS = (
    *("filename", "class", "xmin", "x", "w", "width", "height", "bbox", "split", "set", "score"),
    *("image", "ImageID", "LabelName", "difficult", "label", "x1", "y2", '"', '"a\nb"', "", "''"),
)


def csv_table(choices: Choices, folder: Path) -> None:
    """A table, beside names of classes."""
    root = folder / "csv"
    _images(root, "x")
    lines = choices.pick(_TABLES).splitlines()
    delimiter = ";" if ";" in lines[0] else ","
    for _ in range(choices.below(6)):
        place = choices.below(len(lines))
        cells = lines[place].split(delimiter)
        cell = choices.below(len(cells))
        match choices.below(8):
            case 0 | 1:
                cells[cell] = choices.pick(_NUMBERS)
            case 2:
                cells[cell] = choices.pick(TEXTS)
            case 3:
                cells[cell] = choices.pick(_HEADERS)
            case 4:
                cells *= choices.pick((2, 40))
            case 5:
                del cells[cell]
            case 6:
                # A larger table would need more memory, which is no finding.
                most = (1 << 18) // (1 + len(lines[place]))
                lines[place:place] = [lines[place]] * min(most, choices.pick((1, 300)))
                continue
            case _:
                cells[cell] = f'"{choices.pick(TEXTS)}'
        lines[place] = delimiter.join(cells)[: 1 << 17]
    data = choices.pick(_BREAKS).join(lines).encode(choices.pick(_ENCODINGS), "replace")
    (root / "table.csv").write_bytes(damaged(data, choices) if choices.one_in(12) else data)
    classes = _mutated_lines("cat,1\ndog,2\n", choices, _NUMBERS) if choices.one_in(3) else b""
    (root / "classes.csv").write_bytes(classes)
    titles = _mutated_lines("/m/1,Cat\n/m/2,Dog\n", choices, TEXTS) if choices.one_in(4) else b""
    (root / "class-descriptions.csv").write_bytes(titles)
    _read(root, choices, ("all", "all", "train"))
