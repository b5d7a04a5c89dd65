from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from multibox.commands.prediction.items import VideoRef
from multibox.commands.prediction.video import AnnotatedVideo, frame_rate, frames
from multibox.errors import DataError, StorageError

av = pytest.importorskip("av")


def numbered(number: int, size: tuple[int, int] = (48, 160)) -> np.ndarray:
    """A picture that shows a number in binary digits, wide enough to survive compression."""
    pixels = np.full((*size, 3), 90, np.uint8)
    for digit in range(9):
        pixels[:16, digit * 16 : digit * 16 + 16] = 255 if number >> digit & 1 else 0
    return pixels


def read_number(pixels: np.ndarray) -> int:
    return sum(int(pixels[8, d * 16 + 8, 1] > 128) << d for d in range(9))


def write_video(path: Path, count: int, **options: str) -> Path:
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 48, "yuv420p"
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def ref(path: Path) -> VideoRef:
    return VideoRef(str(path), str(path))


@pytest.mark.parametrize("name", ["x.mp4", "x.mkv", "x.avi"])
def test_every_frame_comes_once_and_in_order(tmp_path: Path, name: str) -> None:
    found = list(frames(ref(write_video(tmp_path / name, 300))))
    assert [frame.number for frame in found] == list(range(300))
    assert [read_number(frame.pixels) for frame in found] == list(range(300))
    assert found[-1].time_s == pytest.approx(299 / 25, abs=0.05)
    assert len(list(frames(ref(tmp_path / name), most=5))) == 5


@pytest.mark.parametrize("size", [(48, 160), (49, 161)])
def test_what_is_written_is_read_again(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "x.mp4"
    video = AnnotatedVideo(path, Fraction(30000, 1001))
    for number in range(40):
        video.write(numbered(number, size if number != 7 else (96, 320)))
    assert not path.exists()
    video.close()
    found = list(frames(ref(path)))
    numbers = [read_number(frame.pixels) for frame in found]
    assert len(numbers) == 40
    assert numbers[:7] + numbers[8:] == [*range(7), *range(8, 40)]
    assert frame_rate(ref(path)) == Fraction(30000, 1001)
    assert [file.name for file in tmp_path.iterdir()] == ["x.mp4"]


@pytest.mark.parametrize("name", ["x.mp4", "x.mkv", "x.avi"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.8])
def test_a_video_that_is_cut_short_is_named_after_its_frames(
    tmp_path: Path, name: str, share: float
) -> None:
    path = write_video(tmp_path / name, 100, movflags="faststart")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    found: list[int] = []

    def collect() -> None:
        for frame in frames(ref(path)):
            found.append(read_number(frame.pixels))

    with pytest.raises(DataError) as caught:
        collect()
    assert str(caught.value.file) == str(path)
    # The last frame may be a part of one.
    assert found[:-1] == list(range(len(found)))[:-1]


def test_damage_in_the_middle_ends_with_an_error_or_all_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.mp4", 60)
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(20):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 40):
            damaged[place] = int(rng.integers(256))
        path.write_bytes(damaged)
        with suppress(DataError):
            assert len(list(frames(ref(path)))) <= 61


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    secret = write_video(tmp_path / "secret.mp4", 10)
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n"
    concat = "ffconcat version 1.0\nfile {}\n"
    for name in ("list.m3u8", "list.mp4", "list.ts"):
        for text in (playlist, concat):
            (tmp_path / name).write_text(text.format(secret))
            with pytest.raises(DataError):
                list(frames(ref(tmp_path / name)))


def test_what_is_no_video_is_refused(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.mp4").write_text("hello")
    for path in (tmp_path / "text.mp4", tmp_path / "missing.mp4", photos):
        with pytest.raises(DataError):
            list(frames(ref(path)))
    small = write_video(tmp_path / "x.mp4", 3)
    monkeypatch.setenv("MULTIBOX_MAX_PIXELS", "1000")
    with pytest.raises(DataError, match="160 x 48 pixels"):
        list(frames(ref(small)))


def test_a_video_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    video = AnnotatedVideo(tmp_path / "missing" / "x.mp4", Fraction(25))
    with pytest.raises(StorageError, match="cannot be written"):
        (video.write(numbered(0)), video.close())
