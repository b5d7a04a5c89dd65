"""YOLO's text files: splits, names and boxes as literal numbers, and that every fault is named."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from multibox.data.dataset import Dataset
from multibox.data.formats.layouts import known_splits, open_dataset, read_dataset
from multibox.errors import DataError

WIDTH, HEIGHT = 200, 100
IMAGE = simplejpeg.encode_jpeg(np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
BOX = "0 0.5 0.5 0.25 0.5\n"
YAML = "train: images/train\nval: images/val\nnames: [cat, dog]\n"
BASE = {"images/train/a.jpg": IMAGE, "images/val/b.jpg": IMAGE, "data.yaml": YAML}
LABELLED = BASE | {"labels/train/a.txt": BOX, "labels/val/b.txt": "1 0.25 0.5 0.5 1\n"}

Files = dict[str, str | bytes]


def lay_out(root: Path, files: Files) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def read(root: Path, files: Files, split: str = "train", **options: object) -> Dataset:
    return read_dataset(lay_out(root, files), split, **options)


def one_label(root: Path, text: str, **options: object) -> Dataset:
    return read(root, LABELLED | {"labels/train/a.txt": text}, **options)


def boxes(dataset: Dataset) -> dict[str, list[list[float]]]:
    return {item.image_id: item.boxes_px.tolist() for item in dataset.annotations}


def test_the_layout_of_ultralytics(tmp_path: Path) -> None:
    dataset = read(tmp_path, LABELLED)
    assert open_dataset(tmp_path).format == "YOLO"
    assert known_splits(tmp_path) == ("train", "val")
    assert dataset.classes == ("cat",)
    assert boxes(dataset) == {"a": [[75, 25, 125, 75]]}
    both = read_dataset(tmp_path, "train+val")
    assert both.classes == ("cat", "dog")
    assert boxes(both) == {"a": [[75, 25, 125, 75]], "b": [[0, 0, 100, 100]]}
    assert [item.labels.tolist() for item in both.annotations] == [[0], [1]]


@pytest.mark.parametrize(
    ("label", "split"), [("train/labels/a.txt", "train"), ("train/images/a.txt", "train")]
)
def test_a_tree_without_a_description(tmp_path: Path, label: str, split: str) -> None:
    dataset = read(tmp_path, {"train/images/a.jpg": IMAGE, label: "7 0.5 0.5 0.25 0.5"}, split)
    assert dataset.classes == ("7",)
    assert [note.kind for note in dataset.notes] == ["class-names-missing"]
    assert boxes(dataset) == {"a": [[75, 25, 125, 75]]}


def test_a_folder_without_splits_is_the_split_all(tmp_path: Path) -> None:
    files = {"a.jpg": IMAGE, "a.txt": BOX, "b.jpg": IMAGE, "classes.txt": "cat\ndog\n"}
    dataset = read(tmp_path, files, "all")
    assert dataset.classes == ("cat",)
    assert boxes(dataset) == {"a": [[75, 25, 125, 75]], "b": []}
    assert [note.kind for note in dataset.notes] == ["category-idle", "label-missing"]
    assert dataset.notes[1].text.startswith("1 images have no label file")


@pytest.mark.parametrize(
    "text",
    [
        "train: ../train/images\nval: ../valid/images\nnc: 1\nnames: ['cat']\n",
        "path: /home/x/data\ntrain: train/images\nval: valid/images\nnames: {0: cat}\n",
        "train: /home/x/data/train/images/\nval: D:\\data\\valid\\images\nnames:\n  0: cat\n",
        "path: .\ntrain: [train/images]\nval: valid\nnames: [cat]\n",
        "path: ../datasets/x\ntrain: train/images\nval: valid/images\nnames:\n- cat\n",
        "nc: 1\nnames: [cat]\n",
    ],
)
def test_paths_of_other_machines(tmp_path: Path, text: str) -> None:
    files = {"data.yaml": text}
    for split, name in (("train", "a"), ("valid", "b")):
        files |= {f"{split}/images/{name}.jpg": IMAGE, f"{split}/labels/{name}.txt": BOX}
    dataset = read(tmp_path, files)
    assert dataset.classes == ("cat",)
    assert list(boxes(dataset)) == ["a"]
    assert len(known_splits(tmp_path)) == 2
    assert list(boxes(read_dataset(tmp_path, known_splits(tmp_path)[1]))) == ["b"]


def test_a_path_of_another_split_is_never_used_instead(tmp_path: Path) -> None:
    files = {"images/a.jpg": IMAGE, "labels/a.txt": BOX}
    files["data.yaml"] = "train: images\ntest: /home/x/test/images\nnames: [cat]"
    dataset = read(tmp_path, files)
    assert known_splits(tmp_path) == ("train",)
    assert dataset.notes[0].text == "1 splits in the description do not exist: test"


def test_splits_of_other_names(tmp_path: Path) -> None:
    text = "'2007:test': images/train\nextra: images/absent\nnames: [cat, dog]\nauthor: .\n"
    assert list(boxes(read(tmp_path, LABELLED | {"data.yaml": text}, "2007:test"))) == ["a"]
    assert known_splits(tmp_path) == ("2007:test",)


def test_one_folder_of_labels_for_all_splits(tmp_path: Path) -> None:
    files = BASE | {"labels/a.txt": BOX, "labels/b.txt": BOX}
    assert boxes(read(tmp_path, files, "train+val")) == {
        "a": [[75, 25, 125, 75]],
        "b": [[75, 25, 125, 75]],
    }


def test_long_paths_are_not_searched(tmp_path: Path) -> None:
    """Each folder that is left out would be another search: 100,000 of them would take minutes."""
    many = "a/" * 100_000
    for key in ("train", "path", "extra"):
        files = LABELLED | {"data.yaml": f"names: [cat]\nval: images/val\n{key}: {many}\n"}
        lay_out(tmp_path / key, files)
        assert "val" in known_splits(tmp_path / key)
    names = {"obj.names": "cat", "obj.data": f"names = {many}\ntrain = {many}"}
    lay_out(tmp_path / "x", {"a.jpg": IMAGE, "a.txt": BOX} | names)
    assert known_splits(tmp_path / "x") == ("all",)


def test_lists_of_images(tmp_path: Path) -> None:
    files = LABELLED | {
        "data.yaml": "train: train.txt\nval: lists/val.txt\nnames: [cat, dog]",
        "train.txt": "./images/train/a.jpg\n",
        "lists/val.txt": "/elsewhere/images/val/b.jpg\nimages/val/c.jpg\n",
    }
    assert list(boxes(read(tmp_path, files))) == ["a"]
    with pytest.raises(DataError, match=r"val.txt, line 2: its image 'images/val/c.jpg' does not"):
        read_dataset(tmp_path, "val")
    assert list(boxes(read_dataset(tmp_path, "val", on_bad="skip"))) == ["b"]


@pytest.mark.parametrize("folder", ["", "data/", "export/"])
def test_darknet(tmp_path: Path, folder: str) -> None:
    files = {
        f"{folder}obj.data": "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n",
        f"{folder}obj.names": "cat\ndog",
        f"{folder}train.txt": "data/obj_train_data/b.jpg\ndata/obj_train_data/a.jpg\n",
    }
    for name in "ab":
        files |= {f"{folder}obj_train_data/{name}.jpg": IMAGE}
        files |= {f"{folder}obj_train_data/{name}.txt": "1 0.5 0.5 0.25 0.5\n"}
    dataset = read(tmp_path, files)
    assert dataset.classes == ("dog",)
    assert list(boxes(dataset)) == ["a", "b"]


def test_each_folder_has_its_own_numbers(tmp_path: Path) -> None:
    """LabelImg writes a classes.txt into each folder."""
    files = {"train/a.jpg": IMAGE, "train/a.txt": BOX, "train/classes.txt": "cat\ndog"}
    files |= {"test/b.jpg": IMAGE, "test/b.txt": BOX, "test/classes.txt": "dog\ncat"}
    assert read(tmp_path, files).classes == ("cat",)
    assert read_dataset(tmp_path, "test").classes == ("dog",)


def test_label_studio(tmp_path: Path) -> None:
    notes = '{"categories": [{"id": 0, "name": "cat"}], "info": {}}'
    files = {"images/r\xe4t.jpg": IMAGE, "labels/r%C3%A4t.txt": BOX, "notes.json": notes}
    assert read(tmp_path, files, "all").classes == ("cat",)


def test_names_stay_text(tmp_path: Path) -> None:
    text = "train: images/train\nnames: {0: no, 1: 12, '2': ~x}\n"
    dataset = read(
        tmp_path,
        LABELLED
        | {"data.yaml": text, "labels/train/a.txt": "0 .5 .5 .5 .5\n1 .5 .5 .5 .5\n2 .5 .5 .5 .5"},
    )
    assert dataset.classes == ("no", "12", "~x")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0 0.5 0.5 0.25 0.5", [75, 25, 125, 75]),
        ("0.0\t.5 5e-1 0.25 +0.5 ", [75, 25, 125, 75]),
        ("0 0.1 0.2 0.4 0.1 0.3 0.9", [20, 10, 80, 90]),
        ("0 0.1 0.2 0.4 0.2 0.4 0.9 0.1 0.9", [20, 20, 80, 90]),
        ("0 0.125 0.5 0.2501 1.0", [0, 0, 50.01, 100]),
        ("\ufeff0 0.5 0.5 1 1", [0, 0, 200, 100]),
    ],
)
def test_lines(tmp_path: Path, line: str, expected: list[float]) -> None:
    (found,) = boxes(one_label(tmp_path, f"{line}\r\n\n"))["a"]
    assert found == np.float32(expected).tolist()


def test_keypoints_after_a_box(tmp_path: Path) -> None:
    text = "train: images/train\nnames: [cat]\nkpt_shape: [2, 3]"
    line = "0 0.5 0.5 0.25 0.5 0.9 0.9 2 0.1 0.1 0"
    files = LABELLED | {"data.yaml": text, "labels/train/a.txt": line}
    assert boxes(read(tmp_path, files)) == {"a": [[75, 25, 125, 75]]}


@pytest.mark.parametrize("text", [None, "", "\n\n"])
def test_images_without_objects_are_kept(tmp_path: Path, text: str | None) -> None:
    files = LABELLED | {"images/train/c.jpg": IMAGE}
    if text is not None:
        files["labels/train/c.txt"] = text
    dataset = read(tmp_path, files)
    assert boxes(dataset) == {"a": [[75, 25, 125, 75]], "c": []}
    assert ("label-missing" in {note.kind for note in dataset.notes}) == (text is None)


def test_names_that_look_escaped(tmp_path: Path) -> None:
    names = ("a%20b", "a b", "100%25")
    files = {f"images/{name}.jpg": IMAGE for name in names}
    files |= {f"labels/{name}.txt": f"{n} 0.5 0.5 0.25 0.5" for n, name in enumerate(names)}
    dataset = read(tmp_path, files, "all")
    labels = {item.image_id: item.labels.tolist() for item in dataset.annotations}
    assert labels == {"a%20b": [0], "a b": [1], "100%25": [2]}


def test_classes_that_count_from_1_are_refused(tmp_path: Path) -> None:
    """With `skip`, the objects of the last class would be left out and the others renamed."""
    with pytest.raises(DataError, match="seem to number the 2 classes") as bad:
        one_label(tmp_path, "1 0.5 0.5 0.25 0.5\n2 0.5 0.5 0.25 0.5\n", on_bad="skip")
    assert bad.value.position == "line 2"


@pytest.mark.parametrize(
    ("line", "kind", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", "category-unknown", "its class is 2, but data.yaml has 2 names"),
        ("-1 0.5 0.5 0.1 0.1", "number-malformed", "its class is '-1', not a whole number"),
        ("0.5 0.5 0.5 0.1 0.1", "number-malformed", "its class is '0.5', not a whole number"),
        ("cat 0.5 0.5 0.1 0.1", "number-malformed", "its class is 'cat', not a plain number"),
        ("0 nan 0.5 0.1 0.1", "number-malformed", "its column 2 is 'nan', not a plain number"),
        ("0 0.5 1e999 0.1 0.1", "number-malformed", "its column 3 is '1e999', not a plain"),
        ("0 0.5 0.5 0.1", "columns-malformed", "has 4 columns. A box has 5"),
        ("0 0.5 0.5 0.1 0.1 0.9", "columns-malformed", "has 6 columns. A box has 5"),
        ("0 0.5 0.5 0.1 0.1 0.9 0.1 0.2", "columns-malformed", "has 8 columns"),
        ("0,0.5,0.5,0.1,0.1", "columns-malformed", "has 1 columns"),
        ("0 100 50 20 20", "not-a-fraction", "its coordinate 100 is not a fraction"),
        ("0 0.5 0.5 0.1 0", "box-empty", "is empty"),
        ("0 0.5 0.5 1.1 0.5", "box-outside", "leaves the image of 200 x 100"),
    ],
)
def test_faults_of_lines(tmp_path: Path, line: str, kind: str, message: str) -> None:
    dataset = one_label(tmp_path, f"{BOX}\n{line}\n", on_bad="skip")
    (fault,) = dataset.faults
    assert (fault.kind, fault.position) == (kind, "line 3")
    assert fault.file == tmp_path / "labels/train/a.txt"
    assert message in fault.reason
    assert boxes(dataset) == {"a": [[75, 25, 125, 75]]}
    with pytest.raises(DataError, match="1 fault"):
        read_dataset(tmp_path, "train")


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("names: [cat\ntrain: x", "yaml-malformed", "is not YAML that can be read"),
        ("names: !!python/object/apply:os.system [x]\n", "yaml-malformed", "it has the tag"),
        ("names: !mine [x]\ntrain: images/train", "yaml-malformed", "it has the tag '!mine'"),
        ("a: &a [x]\nnames: [*a, *a]\n", "yaml-malformed", "it has aliases"),
        ("names: " + "[" * 20, "yaml-malformed", "it has more than 8 levels"),
        ("names: " + "[" * 100_000, "yaml-malformed", "is not YAML that can be read"),
        ("names: " + "- " * 100_000, "yaml-malformed", "is not YAML that can be read"),
        ("[a, b]: 1\nnames: [x]", "yaml-malformed", "a key is not text"),
        ("nc: 3\ntrain: images/train\nnames: [cat, dog]", "yaml-form", "`nc` is 3, but `names`"),
        ("train: images/train\nnames: [cat, [dog]]", "text-malformed", "the name of class 1"),
        ("train: images/train\nnames: {x: cat}", "number-malformed", "a number in `names`"),
        (b"names: [caf\xe9]\ntrain: images/train", "list-encoding", "is not UTF-8"),
        ("#" * (1 << 20) + "\nnames: [cat]", "file-too-large", "the limit is 1048576"),
    ],
)
def test_faults_of_the_description(tmp_path: Path, text: str, kind: str, message: str) -> None:
    lay_out(tmp_path, LABELLED | {"data.yaml": text})
    with pytest.raises(DataError, match="1 fault"):
        read_dataset(tmp_path, "train")
    (fault,) = read_dataset(tmp_path, "train", on_bad="skip").faults
    assert (fault.kind, fault.file) == (kind, tmp_path / "data.yaml")
    assert message in fault.reason


def test_many_aliases_are_not_expanded(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    lay_out(tmp_path, LABELLED | {"data.yaml": "\n".join(lines)})
    (fault,) = read_dataset(tmp_path, "train", on_bad="skip").faults
    assert "it has aliases" in fault.reason


def test_a_label_file_without_an_image_is_a_fault(tmp_path: Path) -> None:
    dataset = read(tmp_path, LABELLED | {"labels/train/c.txt": BOX}, on_bad="skip")
    (fault,) = dataset.faults
    assert (fault.kind, fault.file.name) == ("image-missing", "c.txt")


def test_without_images_each_label_file_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image is called 'a'"):
        read(tmp_path, {"labels/a.txt": BOX, "classes.txt": "cat"}, "all")


@pytest.mark.parametrize(
    "files",
    [
        {"README.txt": "5 images"},
        {"ImageSets/Main/train.txt": "a\nb\n", "labels.txt": "cat\ndog\n"},
        {"a.txt": "a photograph of a cat"},
        {"a.txt": "1 2 3"},
        {"config.yaml": "epochs: 3\nlr: 0.1"},
        {"classes.txt": "1 2 3 4 5"},
    ],
)
def test_stray_texts_are_no_labels(tmp_path: Path, files: Files) -> None:
    lay_out(tmp_path, {"a.jpg": IMAGE} | files)
    with pytest.raises(DataError, match="no annotations in a known format"):
        open_dataset(tmp_path)


def test_an_archive_is_read_like_its_folder(tmp_path: Path) -> None:
    expected = read(tmp_path / "x", LABELLED, "train+val")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name, content in LABELLED.items():
            archive.writestr(name, content)
    assert read_dataset(tmp_path / "x.zip", "train+val").digest == expected.digest


def test_the_image_gives_the_size_when_images_are_not_checked(tmp_path: Path) -> None:
    assert boxes(read(tmp_path, LABELLED, images="ignore")) == {"a": [[75, 25, 125, 75]]}
