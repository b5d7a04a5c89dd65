import math
import re
import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from names import AWKWARD

from multibox.errors import DataError, StorageError
from multibox.evaluation.results import by_class_in_pixels, read_results, write_results
from multibox.evaluation.voc import NO_DETECTIONS, ClassDetections
from multibox.structures import Detections

IDS = ["000001", "2008_000001", "last"]


def one_detection(box: tuple[float, ...], score: float = 0.5, image: int = 0) -> ClassDetections:
    return ClassDetections(np.array([image]), np.array([score]), np.array([box]))


def read(folder, *, classes=("cat",)):
    return read_results(folder, split="test", classes=classes, image_ids=IDS)


def put(folder, text, name="comp4_det_test_cat.txt"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# --- from the network's detections to pixels


def test_detections_are_clipped_and_scaled_to_their_own_image():
    first = Detections(
        boxes=torch.tensor([[-0.5, 0.25, 0.5, 1.5], [0.1, 0.2, 0.3, 0.4]]),
        scores=torch.tensor([0.9, 0.75]),
        labels=torch.tensor([1, 0]),
    )
    none = Detections(torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.int64))
    third = Detections(torch.tensor([[0.0, 0.0, 1.0, 0.5]]), torch.ones(1), torch.tensor([1]))
    sizes = np.array([[100, 200], [7, 7], [40, 30]])
    result = by_class_in_pixels([first, none, third], sizes, ["cat", "dog", "cow"])
    assert list(result) == ["cat", "dog", "cow"]
    assert result["cat"].images.tolist() == [0]
    assert result["cat"].scores.tolist() == [0.75]
    np.testing.assert_allclose(result["cat"].boxes_px, [[20, 20, 60, 40]], rtol=1e-6)
    assert result["dog"].images.tolist() == [0, 2]
    assert result["dog"].boxes_px.tolist() == [[0, 25, 100, 100], [0, 0, 30, 20]]
    assert len(result["cow"].images) == 0


# --- writing


@pytest.mark.parametrize(
    ("box", "written"),
    [
        ((10.0, 20.0, 30.0, 40.0), "10 20 30 40"),
        # 10.6 and the width 9.8 are cut off each on its own: 10 + 9.
        ((10.6, 0.0, 20.4, 5.0), "10 0 19 5"),
        # 24.996 is 25.00 in two decimals, 24.994 is 24.99.
        ((24.996, 24.994, 50.0, 50.0), "25 24 50 49"),
        # The half of a hundredth goes up.
        ((0.0, 0.0, 1.995, 7.99), "0 0 2 7"),
    ],
)
def test_pixels_are_cut_off_as_caffe_does(tmp_path, box, written):
    (path,) = write_results(tmp_path, {"cat": one_detection(box)}, IDS, split="test")
    assert path.name == "comp4_det_test_cat.txt"
    assert path.read_text() == f"000001 0.5 {written}\n"


@pytest.mark.parametrize(
    ("score", "written"),
    [(0.123456789, "0.123457"), (1.0, "1"), (0.0100000234, "0.01"), (1.5e-5, "1.5e-05")],
)
def test_scores_have_six_digits(tmp_path, score, written):
    detections = {"cat": one_detection((1.0, 2.0, 3.0, 4.0), score, image=1)}
    (path,) = write_results(tmp_path / "new" / "folder", detections, IDS, split="test")
    assert path.read_text() == f"2008_000001 {written} 1 2 3 4\n"


def caffe_line(box: np.ndarray) -> list[int]:
    """One box in float32, number by number (`detection_output_layer.cpp:335-415`)."""
    x0, y0, x1, y1 = box.astype(np.float32)
    whole = []
    for value in (x0, y0, x1 - x0, y1 - y0):
        hundredths = float(value * np.float32(100))
        whole.append(int(np.float32(math.floor(hundredths + 0.5) / 100)))
    return [whole[0], whole[1], whole[0] + whole[2], whole[1] + whole[3]]


def test_what_is_written_is_read_as_whole_pixels_in_the_same_order(tmp_path):
    rng = np.random.default_rng(7)
    low = rng.uniform(0, 300, (500, 2))
    detections = ClassDetections(
        images=rng.integers(0, len(IDS), 500),
        scores=rng.integers(1, 9, 500) / 8,
        boxes_px=np.concatenate([low, low + rng.uniform(0, 200, (500, 2))], axis=1),
    )
    write_results(tmp_path, {"cat": detections, "dog": NO_DETECTIONS}, IDS, split="test")
    results = read(tmp_path, classes=("cat", "dog"))
    assert results.missing == ()
    assert len(results.detections["dog"].images) == 0
    found = results.detections["cat"]
    assert found.images.tolist() == detections.images.tolist()
    assert found.scores.tolist() == detections.scores.tolist()
    assert found.boxes_px.tolist() == [caffe_line(box) for box in detections.boxes_px]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    blocked = put(tmp_path, "", "file")
    with pytest.raises(StorageError, match="cannot be written"):
        write_results(blocked / "inside", {"cat": NO_DETECTIONS}, IDS, split="test")


@pytest.mark.parametrize("split", ["test", "a+b", "left/right", "s" * 300, "trainval" * 14])
def test_every_class_has_a_file(tmp_path, split):
    folder = tmp_path / "results"
    given = {name: one_detection((1.0, 2.0, 3.0, 4.0), n / 100) for n, name in enumerate(AWKWARD)}
    files = write_results(folder, given, IDS, split=split)
    assert [path.parent for path in files] == [folder] * len(AWKWARD)
    folded = {unicodedata.normalize("NFC", path.name).casefold() for path in files}
    assert len(folded) == len(AWKWARD)
    for path in files:
        assert len(path.name.encode()) <= 255
        assert path.name.isprintable()
        assert not set(path.name) & set('/\\:*?"<>|')
    for classes in (AWKWARD, AWKWARD[::-1]):
        found = read_results(folder, split=split, classes=classes, image_ids=IDS)
        assert found.missing == ()
        scores = {name: of_class.scores.tolist() for name, of_class in found.detections.items()}
        assert scores == {name: [n / 100] for n, name in enumerate(AWKWARD)}


def test_ordinary_classes_have_the_devkits_file_names(tmp_path):
    names = ("dining table", "a.b", "it's", "..", "con", "Katze", "سيارة", "red, blue", "-x", "#1")
    files = write_results(tmp_path, dict.fromkeys(names, NO_DETECTIONS), IDS, split="train+val")
    assert [path.name for path in files] == [f"comp4_det_train+val_{name}.txt" for name in names]


def test_a_literal_file_name_is_read_if_no_other_class_has_it(tmp_path):
    put(tmp_path, "last 0.5 1 2 3 4\n", "comp4_det_test_100%25.txt")
    put(tmp_path, "000001 0.5 1 2 3 4\n", "comp4_det_test_50%.txt")
    found = read(tmp_path, classes=("100%", "50%"))
    assert found.missing == ()
    assert found.detections["100%"].images.tolist() == [2]
    assert found.detections["50%"].images.tolist() == [0]


# --- reading


def test_files_are_found_below_the_folder_whoever_wrote_them(tmp_path):
    put(tmp_path, "000001 .5 1 2.5 3e1 4\n", "VOC2007/Main/comp3_det_test_cat.txt")
    put(tmp_path, "\n last\t-0.25   1 2 3 4  \r\n\n", "mine_det_test_dining table.txt")
    put(tmp_path, "not read", "comp3_det_val_cat.txt")
    put(tmp_path, "not read", "comp3_det_test_cow.txt")
    put(tmp_path, "000001 0.5 1 2 3 4\n", "det_test_bird.txt")
    results = read(tmp_path, classes=("cat", "dog", "dining table", "bird"))
    assert results.detections.pop("bird").images.tolist() == [0]
    assert results.missing == ("dog",)
    assert list(results.detections) == ["cat", "dog", "dining table"]
    assert results.detections["cat"].boxes_px.tolist() == [[1, 2.5, 30, 4]]
    assert results.detections["dining table"].images.tolist() == [2]
    assert results.detections["dining table"].scores.tolist() == [-0.25]
    assert len(results.detections["dog"].scores) == 0


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("000001 0.5 1 2 3", "expected an image, a score and four coordinates"),
        ("000001 0.5 1 2 3 4 5", "expected an image, a score and four coordinates"),
        ("000001 0.5 1 2 3 four", "expected an image, a score and four coordinates"),
        ("000001 nan 1 2 3 4", "expected an image, a score and four coordinates"),
        ("000001 0.5 1 2 inf 4", "expected an image, a score and four coordinates"),
        ("000001 0.5 1 2 3 1e999", "expected an image, a score and four coordinates"),
        ("000001 0.5 1 2 3 1_0", "expected an image, a score and four coordinates"),
        ("000001 0.5 1 2 3 0x4", "expected an image, a score and four coordinates"),
        ("000001 0.5 1 2 3 \u0664", "expected an image, a score and four coordinates"),
        ("000001,0.5,1,2,3,4", "expected an image, a score and four coordinates"),
        ("# a comment", "expected an image, a score and four coordinates"),
        ("1 0.5 1 2 3 4", "image 1 is not in the image set"),
        ("2008_0000011 0.5 1 2 3 4", "image 2008_0000011 is not in the image set"),
        ("2008_00000123 0.5 1 2 3 4", "image 2008_00000123 is not in the image set"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, reason):
    path = put(tmp_path, f"\n000001 0.5 1 2 3 4\n{line}\n000001 0.5 1 2 3 4\n")
    with pytest.raises(DataError, match=re.escape(reason)) as error:
        read(tmp_path)
    assert (error.value.file, error.value.position) == (path, "line 3")


lines = st.lists(
    st.lists(
        st.sampled_from([*IDS, "0.5", "1", "-2e1", "nan", "1_0", "x", "\u0661", "\x1c", "\xa0"]),
        min_size=5,
        max_size=7,
    )
    | st.just([])
    | st.just([IDS[1], "0.25", "1", "2", "3", "4"]),
    max_size=5,
)


@given(lines)
def test_a_file_is_read_or_refused_at_its_line(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("results")
    put(folder, "\n".join(" ".join(line) for line in lines))
    number = re.compile(r"-?[0-9]*\.?[0-9]+(e[0-9]+)?", re.ASCII)
    expected, wrong = [], None
    for place, line in enumerate(lines, start=1):
        row = " ".join(line).split()
        sound = len(row) == 6 and row[0] in IDS and all(map(number.fullmatch, row[1:]))
        if row and not sound:
            wrong = f"line {place}"
            break
        if row:
            expected.append([IDS.index(row[0]), *map(float, row[1:])])
    if wrong:
        with pytest.raises(DataError) as error:
            read(folder)
        assert error.value.position == wrong
        return
    images, scores, boxes = read(folder).detections["cat"]
    assert np.column_stack([images, scores, boxes]).tolist() == expected


def test_two_files_of_a_class_are_refused(tmp_path):
    put(tmp_path, "", "a/comp3_det_test_cat.txt")
    put(tmp_path, "", "b/comp4_det_test_cat.txt")
    with pytest.raises(DataError, match="two files for class cat") as error:
        read(tmp_path)
    assert "a/comp3_det_test_cat.txt" in str(error.value)
    assert "b/comp4_det_test_cat.txt" in str(error.value)


def test_a_folder_without_results_is_refused(tmp_path):
    put(tmp_path, "", "comp3_det_val_cat.txt")
    with pytest.raises(DataError, match="no results file"):
        read(tmp_path)
    with pytest.raises(DataError, match="no results file"):
        read(tmp_path / "absent")


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "comp4_det_test_cat.txt").write_bytes(b"\xff\xfe000001")
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path)


def test_an_image_set_with_an_image_twice_is_refused(tmp_path):
    put(tmp_path, "")
    with pytest.raises(DataError, match="lists image a more than once"):
        read_results(tmp_path, split="test", classes=["cat"], image_ids=["a", "b", "a"])
