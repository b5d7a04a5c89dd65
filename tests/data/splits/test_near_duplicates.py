"""Near-duplicates: copies in other sizes, encodings and orientations, and nothing else."""

from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest

from multibox.data.splits.near_duplicates import group_similar, thumbnails
from multibox.rng import stream


def photograph(number: int, side: int = 160) -> np.ndarray:
    """A picture with structure at all sizes."""
    rng = stream(number, "photograph")
    picture = np.zeros((side, side, 3), np.float32)
    for cells in (3, 6, 12, 40):
        noise = rng.uniform(0, 1, (cells, cells, 3)).astype(np.float32)
        picture += cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC) / cells**0.5
    return (255 * (picture - picture.min()) / np.ptp(picture)).astype(np.uint8)


def write(path: Path, picture: np.ndarray, *options: int) -> Path:
    assert cv2.imwrite(str(path), picture, list(options))
    return path


def groups(paths: list[Path]) -> list[int]:
    return group_similar(thumbnails(paths, threads=2)).tolist()


def test_versions_of_a_picture_are_a_group_and_others_are_not(tmp_path: Path) -> None:
    one, two = photograph(1), photograph(2)
    paths = [
        write(tmp_path / "a.jpg", one),
        write(tmp_path / "b.jpg", two),
        write(tmp_path / "a-small.png", cv2.resize(one, (70, 70), interpolation=cv2.INTER_AREA)),
        write(tmp_path / "a-coarse.jpg", one, cv2.IMWRITE_JPEG_QUALITY, 15),
        write(tmp_path / "a-mirrored.jpg", np.ascontiguousarray(one[:, ::-1])),
        write(tmp_path / "a-grey.jpg", cv2.cvtColor(one, cv2.COLOR_BGR2GRAY)),
        write(tmp_path / "a-dark.jpg", (one * 0.6).astype(np.uint8)),
        *(write(tmp_path / f"other-{number}.jpg", photograph(number)) for number in range(3, 20)),
    ]
    assert groups(paths) == [0, 1, 0, 0, 0, 0, 0, *range(7, 24)]


def test_blank_pictures_are_a_group(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / "black.png", np.zeros((40, 40, 3), np.uint8)),
        write(tmp_path / "picture.png", photograph(1)),
        write(tmp_path / "white.png", np.full((50, 40, 3), 255, np.uint8)),
    ]
    assert groups(paths) == [0, 1, 0]


@pytest.mark.parametrize("rows", [3, 1024])
def test_groups_are_the_connected_components(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multibox.data.splits.near_duplicates._ROWS", rows)
    rng = stream(5, "groups")
    for _ in range(20):
        vectors = rng.normal(0, 1, (24, 576)).astype(np.float32)
        # Chains: each vector is close to an earlier one or to none.
        for place in range(1, 24):
            if rng.uniform() < 0.6:
                vectors[place] = vectors[rng.integers(0, place)] + 0.5 * vectors[place]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        expected = {place: {place} for place in range(24)}
        mirrored = vectors.reshape(-1, 24, 24)[:, :, ::-1].reshape(24, -1)
        for a, b in combinations(range(24), 2):
            if max(vectors[a] @ vectors[b], vectors[a] @ mirrored[b]) >= 0.85:
                union = expected[a] | expected[b]
                for place in union:
                    expected[place] = union
        found = group_similar(vectors, 0.85).tolist()
        assert found == [min(expected[place]) for place in range(24)]


def test_raccoons(shared: Path) -> None:
    paths = sorted((shared / "data" / "raccoon" / "images").iterdir())
    found = groups(paths)
    named = [
        {
            paths[place].stem.removeprefix("raccoon-")
            for place in range(200)
            if found[place] == first
        }
        for first in sorted(set(found))
    ]
    assert sorted(sorted(group) for group in named if len(group) > 1) == [
        ["11", "116"],
        ["120", "83"],
        ["21", "45"],
        ["50", "52", "74"],
        ["51", "85"],
        ["65", "98"],
    ]
