import io
import tarfile
import zipfile
from itertools import islice
from pathlib import Path

import fsspec
import pytest

from multibox.commands.predict import no_addresses
from multibox.commands.prediction.items import (
    ImageRef,
    VideoRef,
    name_results,
    read_encoded,
    read_pixels,
)
from multibox.commands.prediction.sources import Listing, find_sources, refuse_inside
from multibox.errors import ConfigError, DataError, MultiboxError


def listed(*words: object, recursive: bool = False, lines: tuple[str, ...] = ()) -> list[str]:
    found = find_sources(Listing([str(word) for word in words], recursive, lines))
    return [ref.name for ref in found]


def write_tar(path: Path, *members: tuple[str, bytes | None]) -> Path:
    """None: a link to the first image."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content or b""))
    return path


def test_every_kind_of_source_is_found(photos: Path, tmp_path: Path) -> None:
    below = photos / "below"
    below.mkdir()
    (below / "x.png").write_bytes((photos / "0.png").read_bytes())
    (photos / "notes.txt").touch()
    own = [str(photos / f"{number}.png") for number in range(7)]
    assert listed(photos) == own
    assert listed(photos, recursive=True) == [*own, str(below / "x.png")]
    assert listed(f"{photos}/[0-2].*") == own[:3]
    assert listed(f"{photos}/**/*.png") == sorted([*own, str(below / "x.png")])
    assert listed("-", lines=(f"{own[3]}\n", "\n", f"{own[0]}\r\n")) == [own[3], own[0]]
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.write(own[0], "a/0.png")
    assert listed(tmp_path / "photos.zip") == [str(tmp_path / "photos.zip" / "a" / "0.png")]
    assert listed("https://example.org/a.jpg?b=c") == ["https://example.org/a.jpg?b=c"]
    assert listed("missing.jpg") == ["missing.jpg"]


def test_videos_cameras_and_streams_are_told_from_images() -> None:
    words = ("a.MP4", "0", "rtsp://camera/1", "https://example.org/x.webm", "https://e.org/l.m3u8")
    found = list(find_sources(Listing(words)))
    assert [(type(ref), ref.live) for ref in found if isinstance(ref, VideoRef)] == [
        (VideoRef, False),
        (VideoRef, True),
        (VideoRef, True),
        (VideoRef, False),
        (VideoRef, True),
    ]


def test_a_name_with_wildcards_that_exists_is_a_file(photos: Path) -> None:
    odd = photos / "a[1].png"
    odd.write_bytes(b"")
    assert listed(odd) == [str(odd)]


@pytest.mark.parametrize("word", ["{photos}/empty", "{photos}/*.bmp"])
def test_where_no_image_is_there_is_an_error(photos: Path, word: str) -> None:
    (photos / "empty").mkdir()
    with pytest.raises(DataError, match=r"contains no images|matches no image"):
        listed(word.format(photos=photos))


def test_folders_that_link_to_each_other_are_listed_once(photos: Path) -> None:
    (photos / "again").symlink_to(photos)
    assert len(listed(photos, recursive=True)) == 7


def test_images_in_tar_shards_are_read_in_place(photos: Path, tmp_path: Path) -> None:
    content = (photos / "0.png").read_bytes()
    for number in range(2):
        members = ((f"{number}.png", content), (f"{number}.json", b"{}"))
        write_tar(tmp_path / f"s-{number:03d}.tar", *members)
    refs = list(find_sources(Listing([f"{tmp_path}/s-{{000..001}}.tar"])))
    assert [Path(ref.name).name for ref in refs] == ["0.png", "1.png"]
    assert all(read_encoded(ref, no_addresses) == content for ref in refs)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="range"):
        listed("s-{5..1}.tar")


def test_hostile_members_of_a_tar_are_named_and_not_read(photos: Path, tmp_path: Path) -> None:
    content = (photos / "0.png").read_bytes()
    shard = write_tar(
        tmp_path / "hostile.tar",
        ("../up.png", content),
        ("/etc/absolute.png", content),
        ("link.png", None),
        ("sound.png", content),
    )
    found = list(find_sources(Listing([str(shard)])))
    for ref in found[:3]:
        assert isinstance(ref, ImageRef)
        with pytest.raises(DataError, match=r"leads out of the archive|not followed"):
            read_pixels(ref, no_addresses)
    assert read_pixels(found[3], no_addresses).shape == (80, 100, 3)  # type: ignore[arg-type]


# Newer versions of Python end the archive at a negative size, others go back.
@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (b"\xff" * 12, "negative size|is damaged"),
        (b"\xff" * 10 + b"\xf0\0", "negative size|is damaged"),
        (b"00000x00000\0", r"header at byte \d+ is damaged"),
    ],
)
def test_a_tar_with_a_damaged_size_is_named(
    photos: Path, tmp_path: Path, size: bytes, reason: str
) -> None:
    content = (photos / "0.png").read_bytes()
    shard = write_tar(tmp_path / "s.tar", ("a.png", content), ("b.png", content))
    data = bytearray(shard.read_bytes())
    start = data.index(b"b.png")
    data[start + 124 : start + 136] = size
    checksum = sum(data[start : start + 148]) + sum(data[start + 156 : start + 512]) + 8 * 32
    data[start + 148 : start + 156] = b"%06o\0 " % checksum
    shard.write_bytes(data)
    sound, damaged = islice(find_sources(Listing([str(shard)])), 10)
    assert isinstance(sound, ImageRef)
    assert isinstance(damaged, ImageRef)
    assert read_pixels(sound, no_addresses).shape == (80, 100, 3)
    with pytest.raises(DataError, match=reason):
        read_pixels(damaged, no_addresses)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 0.9])
def test_a_damaged_tar_gives_what_it_has_and_is_named(
    photos: Path, tmp_path: Path, share: float
) -> None:
    members = [(f"{n}.png", (photos / f"{n}.png").read_bytes()) for n in range(7)]
    shard = write_tar(tmp_path / "cut.tar", *members)
    data = shard.read_bytes()[: sum(len(content) + 1024 for _, content in members)]
    shard.write_bytes(data[: int(len(data) * share)])
    *_, last = find_sources(Listing([str(shard)]))
    assert isinstance(last, ImageRef)
    with pytest.raises(MultiboxError):
        read_pixels(last, no_addresses)


def test_fsspec_addresses_are_listed_and_read(photos: Path) -> None:
    system = fsspec.filesystem("memory")
    content = (photos / "0.png").read_bytes()
    for name in ("/set/b.png", "/set/a.png", "/set/below/c.png", "/set/notes.txt"):
        system.pipe(name, content)
    system.pipe("/set/s.tar", write_tar(photos / "s.tar", ("d.png", content)).read_bytes())
    expected = ["memory:///set/a.png", "memory:///set/b.png", "memory:///set/s.tar/d.png"]
    assert listed("memory://set") == expected
    assert listed("memory://set", recursive=True) == [*expected, "memory:///set/below/c.png"]
    assert listed("memory://set/*.png") == expected[:2]
    for ref in find_sources(Listing(["memory://set"])):
        assert read_encoded(ref, no_addresses) == content  # type: ignore[arg-type]
    with pytest.raises(DataError, match="does not exist"):
        read_encoded(ImageRef("memory://x.png", "memory://x.png"), no_addresses)
    with pytest.raises(DataError, match="unknown"):
        listed("unknown://x")


def test_results_are_not_written_where_images_are_read(photos: Path) -> None:
    for out, word in ((photos, photos), (photos / "found", photos), (photos, f"{photos}/*.png")):
        with pytest.raises(ConfigError, match="Choose a folder outside"):
            refuse_inside(out, [str(word)])
    refuse_inside(photos.parent / "found", [str(photos), "-", "s3://bucket/x"])


def test_results_have_names_that_a_file_can_have() -> None:
    refs = [
        ImageRef("https://e.org/a/photo.jpg?x=1", "https://e.org/a/photo.jpg?x=1"),
        ImageRef("s.tar/../x/ü b.jpg", "s.tar", 512, 3),
        ImageRef("https://e.org", "https://e.org"),
        ImageRef("/photos/photo.png", "/photos/photo.png"),
        ImageRef("https://[", "https://["),
        ImageRef(f"s.tar/{'x' * 300}.jpg", "s.tar", 512, 3),
        VideoRef("rtsp://camera/1/..", "rtsp://camera/1/..", live=True),
    ]
    found = name_results(refs)
    assert found[:4] == ["photo", "ü_b", "e", "photo-2"]
    assert len(set(found)) == len(found)
    assert all("/" not in name and name.strip(".") and len(name) <= 110 for name in found)
