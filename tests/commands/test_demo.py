"""The drawn dataset is the same every time, well-formed, and its boxes are what is to be seen."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from defusedxml.ElementTree import parse

from multibox.commands.demo import dataset as drawn
from multibox.commands.demo.dataset import CLASSES, Thing, draw_dataset, draw_scene
from multibox.errors import ConfigError, StorageError
from multibox.rng import stream

TRAIN, TEST = 48, 24


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "not" / "yet" / "there"
    draw_dataset(folder, train_images=TRAIN, test_images=TEST)
    return folder


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _split(folder: Path, split: str) -> list[str]:
    return (folder / "ImageSets" / "Main" / f"{split}.txt").read_text().split()


def _objects(folder: Path, name: str) -> list[tuple[str, list[int], bool]]:
    root = parse(folder / "Annotations" / f"{name}.xml").getroot()
    return [
        (
            thing.findtext("name"),
            [int(thing.findtext(f"bndbox/{edge}")) for edge in ("xmin", "ymin", "xmax", "ymax")],
            {"0": False, "1": True}[thing.findtext("difficult")],
        )
        for thing in root.iter("object")
    ]


def test_two_drawings_are_equal_byte_for_byte(tmp_path):
    for name in ("a", "b"):
        draw_dataset(tmp_path / name, train_images=5, test_images=2, seed=3)
    assert _contents(tmp_path / "a") == _contents(tmp_path / "b")


def test_an_image_depends_on_the_seed_and_its_number_only(dataset, tmp_path):
    draw_dataset(tmp_path / "fewer", train_images=4, test_images=1)
    draw_dataset(tmp_path / "other", train_images=4, test_images=1, seed=1)
    all_files, fewer = _contents(dataset), _contents(tmp_path / "fewer")
    other = _contents(tmp_path / "other")
    for number in range(1, 5):
        for file in (f"JPEGImages/{number:06d}.jpg", f"Annotations/{number:06d}.xml"):
            assert fewer[file] == all_files[file]
            assert fewer[file] != other[file]


def test_counts_and_layout(dataset):
    train, test = _split(dataset, "trainval"), _split(dataset, "test")
    assert (len(train), len(test)) == (TRAIN, TEST)
    assert train + test == [f"{number:06d}" for number in range(1, TRAIN + TEST + 1)]
    expected = {f"JPEGImages/{name}.jpg" for name in train + test}
    expected |= {f"Annotations/{name}.xml" for name in train + test}
    expected |= {"ImageSets/Main/trainval.txt", "ImageSets/Main/test.txt", "drawn.json"}
    assert set(_contents(dataset)) == expected


def test_boxes_lie_in_the_image_that_the_annotation_describes(dataset):
    for name in _split(dataset, "trainval") + _split(dataset, "test"):
        jpeg = (dataset / "JPEGImages" / f"{name}.jpg").read_bytes()
        height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
        root = parse(dataset / "Annotations" / f"{name}.xml").getroot()
        assert root.findtext("filename") == f"{name}.jpg"
        size = [int(root.findtext(f"size/{side}")) for side in ("width", "height", "depth")]
        assert size == [width, height, 3]
        for _, (xmin, ymin, xmax, ymax), _ in _objects(dataset, name):
            assert 1 <= xmin < xmax <= width
            assert 1 <= ymin < ymax <= height


def test_every_class_is_in_both_splits_and_only_training_has_empty_images(dataset):
    for split in ("trainval", "test"):
        objects = {name: _objects(dataset, name) for name in _split(dataset, split)}
        asked = Counter(o[0] for found in objects.values() for o in found if not o[2])
        assert set(asked) == set(CLASSES)
        assert min(asked.values()) >= 5
        assert any(not found for found in objects.values()) == (split == "trainval")


def test_no_two_images_are_equal(dataset):
    images = [path.read_bytes() for path in (dataset / "JPEGImages").iterdir()]
    assert len(set(images)) == TRAIN + TEST


def test_boxes_are_exactly_what_the_object_covers(monkeypatch):
    """A single object is drawn over black and over white: what differs is not covered."""
    monkeypatch.setattr(drawn, "OBJECTS", (1, 1))
    monkeypatch.setattr(drawn, "CLUTTER", (0, 0))
    monkeypatch.setattr(drawn, "CUT", 0.5)
    monkeypatch.setattr(drawn, "photograph", lambda _rng, image: image)
    truncated = 0
    for number in range(60):
        scenes = []
        for ground in (0, 255):
            monkeypatch.setattr(
                drawn,
                "paint_background",
                lambda _rng, width, height, ground=ground: np.full(
                    (height, width, 3), ground, dtype=np.uint8
                ),
            )
            scenes.append(draw_scene(stream(0, "one", number), empty_share=0.0))
        (over_black, objects), (over_white, same) = scenes
        assert objects == same
        uncovered = over_white[..., 0].astype(int) - over_black[..., 0]
        boxes = []
        # Half of a pixel, give or take how often OpenCV rounds.
        for least in (131, 125):
            ys, xs = np.nonzero(255 - uncovered >= least)
            boxes.append((xs.min() + 1, ys.min() + 1, xs.max() + 1, ys.max() + 1))
        assert objects[0].box_px in boxes
        at_edge = xs.min() == 0 or ys.min() == 0
        at_edge |= xs.max() == over_black.shape[1] - 1 or ys.max() == over_black.shape[0] - 1
        assert at_edge or not objects[0].truncated
        truncated += objects[0].truncated
    assert 5 < truncated < 55


def _draw_squares(monkeypatch, *squares: tuple[int, int, int]) -> list[drawn.Drawn]:
    """Draws opaque squares from front to back, each given by its corner and its side."""
    things = []
    for x, y, side in squares:
        corners = np.array([[0, 0], [side - 1, 0], [side - 1, side - 1], [0, side - 1]], float)
        place, extent = np.array([x, y], float), np.full(2, float(side))
        things.append(Thing("star", place, extent, 0, [corners], [(0.0,) * 3] * 2))
    monkeypatch.setattr(drawn, "OBJECTS", (len(things), len(things)))
    monkeypatch.setattr(drawn, "place_thing", lambda *_: things.pop(0))
    return draw_scene(stream(0, "squares"), empty_share=0.0)[1]


@pytest.mark.parametrize(
    ("hidden_columns", "kept", "difficult"),
    [(20, True, False), (23, True, False), (26, True, True), (35, True, True), (37, False, True)],
)
def test_hidden_objects_are_difficult_or_left_out(monkeypatch, hidden_columns, kept, difficult):
    left = 100 + 40 - hidden_columns
    front, *back = _draw_squares(monkeypatch, (left, 50, 40), (100, 50, 40))
    assert front == ("star", (left + 1, 51, left + 40, 90), False, False)
    assert back == ([("star", (101, 51, 140, 90), False, difficult)] if kept else [])


def test_what_is_left_out_hides_nothing(monkeypatch):
    """Of the back, 0.41 is seen behind the front, but 0.36 behind the front and the middle."""
    squares = ((103, 50, 40), (100, 50, 40), (95, 44, 52))
    objects = _draw_squares(monkeypatch, *squares)
    assert [found.box_px[0] for found in objects] == [104, 96]
    assert not any(found.difficult for found in objects)


def test_what_the_frame_cuts_is_truncated_and_its_box_ends_at_the_frame(monkeypatch):
    monkeypatch.setattr(drawn, "SIDE_PX", (300, 300))
    objects = _draw_squares(monkeypatch, (-10, 50, 40), (290, 270, 40))
    assert objects == [
        ("star", (1, 51, 30, 90), True, False),
        ("star", (291, 271, 300, 300), True, True),
    ]


def test_the_same_dataset_is_left_alone(dataset, monkeypatch):
    monkeypatch.setattr(drawn, "draw_scene", None)
    draw_dataset(dataset, train_images=TRAIN, test_images=TEST)


@pytest.mark.parametrize(
    "arguments",
    [
        {"train_images": TRAIN, "test_images": TEST, "seed": 1},
        {"train_images": TRAIN + 1, "test_images": TEST},
        {"train_images": TRAIN + 1, "test_images": TEST - 1},
    ],
)
def test_another_dataset_is_not_overwritten(dataset, arguments):
    before = _contents(dataset)
    with pytest.raises(StorageError, match=r"not exactly the dataset.*Choose a new folder"):
        draw_dataset(dataset, **arguments)
    assert _contents(dataset) == before


def test_other_files_are_not_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StorageError, match="Choose a new folder"):
        draw_dataset(tmp_path, train_images=1, test_images=1)
    assert list(tmp_path.iterdir()) == [tmp_path / "thesis.txt"]


@pytest.mark.parametrize("lost", ["JPEGImages/000002.jpg", "Annotations", "drawn.json"])
def test_an_incomplete_dataset_is_refused(tmp_path, lost):
    folder = tmp_path / "set"
    draw_dataset(folder, train_images=2, test_images=1)
    if (folder / lost).is_dir():
        shutil.rmtree(folder / lost)
    else:
        (folder / lost).unlink()
    with pytest.raises(StorageError, match="not exactly the dataset"):
        draw_dataset(folder, train_images=2, test_images=1)


def test_a_damaged_marker_is_refused(tmp_path):
    (tmp_path / "drawn.json").write_bytes(b"\xff{")
    with pytest.raises(StorageError, match="not exactly the dataset"):
        draw_dataset(tmp_path, train_images=1, test_images=1)


def test_an_empty_folder_is_filled_and_marked(tmp_path):
    draw_dataset(tmp_path / "set", train_images=1, test_images=1, seed=9)
    marker = json.loads((tmp_path / "set" / "drawn.json").read_text())
    assert marker == {"version": drawn.VERSION, "seed": 9, "train": 1, "test": 1}
    (tmp_path / "empty").mkdir()
    draw_dataset(tmp_path / "empty", train_images=1, test_images=1, seed=9)
    assert _contents(tmp_path / "set") == _contents(tmp_path / "empty")


def test_a_file_in_the_way_is_a_storage_error(tmp_path):
    (tmp_path / "set").write_text("")
    for folder in (tmp_path / "set", tmp_path / "set" / "below"):
        with pytest.raises(StorageError, match="cannot be written"):
            draw_dataset(folder, train_images=1, test_images=1)


def test_an_interruption_leaves_nothing_behind(tmp_path, monkeypatch):
    calls = []

    def interrupted(rng, **options):
        calls.append(rng)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw_scene(rng, **options)

    monkeypatch.setattr(drawn, "draw_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw_dataset(tmp_path / "set", train_images=5, test_images=1)
    assert len(calls) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_split_without_images_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="a split needs an image"):
        draw_dataset(tmp_path / "set", train_images=1, test_images=0)
