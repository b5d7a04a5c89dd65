"""Stored pixels: formats by content, sizes before decoding, and nothing that is cut short."""

import os
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg

from multibox.data.files import read_bytes
from multibox.data.images import (
    check_image,
    decode_image,
    find_images,
    image_size,
    read_image,
)
from multibox.errors import DataError

NAME = Path("photo.jpg")
HEIGHT, WIDTH = 48, 80


def photograph() -> np.ndarray:
    """Smooth colours with some noise: real enough for lossy formats to come close."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    smooth = np.stack([3 * x, 5 * y, 255 - 2 * x - y], axis=-1)
    noise = np.random.default_rng(0).integers(-6, 7, smooth.shape)
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def encode(suffix: str, image: np.ndarray, *options: int) -> bytes:
    return cv2.imencode(suffix, image[..., ::-1] if image.ndim == 3 else image, options)[
        1
    ].tobytes()


def jpeg(quality: int = 90) -> bytes:
    return simplejpeg.encode_jpeg(photograph(), quality=quality)


LOSSLESS_WEBP = (cv2.IMWRITE_WEBP_QUALITY, 101)
ENCODED = {
    "JPEG": jpeg(),
    "PNG": encode(".png", photograph()),
    "BMP": encode(".bmp", photograph()),
    "WebP lossless": encode(".webp", photograph(), *LOSSLESS_WEBP),
    "WebP lossy": encode(".webp", photograph(), cv2.IMWRITE_WEBP_QUALITY, 90),
}
every_format = pytest.mark.parametrize("data", ENCODED.values(), ids=ENCODED.keys())


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(body) + 2).to_bytes(2, "big") + body


def after_start(data: bytes, inserted: bytes) -> bytes:
    return data[:2] + inserted + data[2:]


@pytest.mark.parametrize("name", ["PNG", "BMP", "WebP lossless"])
def test_lossless_formats_give_back_the_pixels(name: str) -> None:
    np.testing.assert_array_equal(decode_image(ENCODED[name], file=NAME), photograph())


def test_jpeg_has_the_pixels_that_opencv_has() -> None:
    expected = cv2.imdecode(np.frombuffer(jpeg(), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(decode_image(jpeg(), file=NAME), expected)


@every_format
def test_size_is_read_from_the_header(data: bytes) -> None:
    assert image_size(data, file=NAME) == (WIDTH, HEIGHT)
    assert decode_image(data, file=NAME).shape == (HEIGHT, WIDTH, 3)


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "really.jpg"
    path.write_bytes(ENCODED["PNG"])
    np.testing.assert_array_equal(read_image(path), photograph())


def test_grey_becomes_rgb() -> None:
    grey = np.ascontiguousarray(photograph()[..., 1])
    expected = np.repeat(grey[..., None], 3, axis=-1)
    for data in (encode(".png", grey), encode(".bmp", grey)):
        np.testing.assert_array_equal(decode_image(data, file=NAME), expected)
    lossy = simplejpeg.encode_jpeg(grey[..., None], 95, "GRAY", "Gray")
    assert simplejpeg.decode_jpeg_header(lossy)[2] == "Gray"
    assert np.abs(decode_image(lossy, file=NAME).astype(int) - expected).mean() < 3


def test_cmyk_jpeg_becomes_rgb_as_opencv_has_it() -> None:
    # Adobe's convention: stored inverted, so that full black (255 here) leaves RGB as it is.
    stored = np.dstack([photograph(), np.full((HEIGHT, WIDTH), 255, np.uint8)])
    data = simplejpeg.encode_jpeg(stored, 95, "CMYK", "444")
    assert simplejpeg.decode_jpeg_header(data)[2] == "YCCK"
    image = decode_image(data, file=NAME)
    assert np.abs(image.astype(int) - photograph()).mean() < 3
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(image, expected)


def test_sixteen_bits_become_eight_and_alpha_is_dropped() -> None:
    deep = photograph().astype(np.uint16) * 257
    np.testing.assert_array_equal(decode_image(encode(".png", deep), file=NAME), photograph())
    clear = np.dstack([photograph()[..., ::-1], np.zeros((HEIGHT, WIDTH), np.uint8)])
    data = cv2.imencode(".png", clear)[1].tobytes()
    np.testing.assert_array_equal(decode_image(data, file=NAME), photograph())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_not_applied(orientation: int) -> None:
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    tiff = b"II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
    data = after_start(jpeg(), segment(0xE1, b"Exif\0\0" + tiff))
    if orientation in (5, 6, 7, 8):
        turned = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert turned.shape[:2] == (WIDTH, HEIGHT)
    assert image_size(data, file=NAME) == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(decode_image(data, file=NAME), decode_image(jpeg(), file=NAME))


@pytest.mark.parametrize("tenths", range(10))
@every_format
def test_cut_short_is_refused(data: bytes, tenths: int) -> None:
    with pytest.raises(DataError) as caught:
        decode_image(data[: len(data) * tenths // 10], file=NAME)
    assert caught.value.file == NAME
    assert caught.value.remedy


@pytest.mark.parametrize("tenths", range(10))
def test_cut_short_with_an_end_marker_put_on_is_refused(tenths: int) -> None:
    data = jpeg()
    with pytest.raises(DataError):
        decode_image(data[: len(data) * tenths // 10] + b"\xff\xd9", file=NAME)


@every_format
def test_flipped_bits_give_pixels_or_a_data_error(data: bytes) -> None:
    rng = np.random.default_rng(1)
    refused = 0
    for trial in range(100):
        damaged = bytearray(data)
        damaged[rng.integers(60 if trial % 2 else len(data))] ^= 1 << rng.integers(8)
        try:
            image = decode_image(bytes(damaged), file=NAME)
        except DataError:
            refused += 1
        else:
            assert image.dtype == np.uint8
            assert image.ndim == 3
    assert refused


def bmp_header(width: int, height: int) -> bytes:
    return b"BM" + bytes(12) + struct.pack("<Iii", 40, width, height) + bytes(32)


def huge() -> dict[str, bytes]:
    """Small files whose headers declare 30000 x 30000 or more pixels."""
    png = bytearray(ENCODED["PNG"])
    png[16:24] = struct.pack(">II", 30_000, 30_000)
    tall = bytearray(jpeg())
    frame = tall.index(b"\xff\xc0")
    tall[frame + 5 : frame + 9] = struct.pack(">HH", 30_000, 30_000)
    canvas = struct.pack("<I", 0xFFFFFF)[:3]
    extended = b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + canvas * 2
    return {
        "PNG": bytes(png),
        "JPEG": bytes(tall),
        "BMP": bmp_header(30_000, -30_000),
        "WebP": extended,
    }


@pytest.mark.parametrize("data", huge().values(), ids=huge().keys())
def test_declared_size_is_refused_before_decoding(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        pytest.fail("a decoder saw the file")

    monkeypatch.setattr(simplejpeg, "decode_jpeg", never)
    monkeypatch.setattr(cv2, "imdecode", never)
    with pytest.raises(DataError, match="the limit is 50000000"):
        decode_image(data, file=NAME)


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (bmp_header(7, -5), (7, 5)),
        (b"BM" + bytes(12) + struct.pack("<IHH", 12, 7, 5), (7, 5)),
        (b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\x06\0\0\x04\0\0", (7, 5)),
    ],
)
def test_rarer_headers(data: bytes, size: tuple[int, int]) -> None:
    assert image_size(data, file=NAME) == size


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an image at all",
        b"GIF89a" + bytes(40),
        b"BM is how this text begins, too long to be one",
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n\0\0\0\rJUNK" + bytes(20),
        b"RIFF\0\0\0\0WEBPVP9 " + bytes(30),
        bmp_header(0, 5),
        bmp_header(-7, 5),
    ],
)
def test_other_content_is_refused(data: bytes) -> None:
    for function in (image_size, decode_image):
        with pytest.raises(DataError) as caught:
            function(data, file=NAME)
        assert caught.value.file == NAME
        assert caught.value.remedy


def test_thousands_of_scans_are_refused() -> None:
    data = jpeg()
    with pytest.raises(DataError, match="scans"):
        decode_image(data[:-2] + b"\xff\xda" * 1000 + data[-2:], file=NAME)


def claiming(place: int, number: bytes, data: bytes) -> bytes:
    return data[:place] + number + data[place + len(number) :]


def test_a_chunk_that_leaves_its_file_is_refused_before_decoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OpenCV makes room for what a chunk says that it holds: 2 GiB here."""
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("a decoder saw the file"))
    png = ENCODED["PNG"]
    idat, end = png.index(b"IDAT") - 4, png.index(b"IEND") - 4
    huge = struct.pack(">I", 0x7FFFFFF0)
    long_end = png[:end] + b"\0\0\0\x04IEND1234" + struct.pack(">I", 0) + png[idat:]
    cases = (claiming(idat, huge, png), claiming(end, huge, png), png[:end], png[:-1], long_end)
    for data in cases:
        with pytest.raises(DataError, match="cut short"):
            decode_image(data, file=NAME)


def test_more_pixels_than_a_jpeg_s_bytes_can_hold_are_refused_before_decoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = jpeg()
    tall = claiming(data.index(b"\xff\xc0") + 5, struct.pack(">HH", 7_000, 7_000), data)
    assert image_size(tall, file=NAME) == (7_000, 7_000)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(DataError, match="cut short"):
        decode_image(tall, file=NAME)


@pytest.mark.parametrize("progressive", [0, 1])
def test_a_jpeg_of_one_colour_is_not_taken_for_cut_short(progressive: int) -> None:
    """The fewest bytes for so many pixels that an encoder makes."""
    options = (cv2.IMWRITE_JPEG_PROGRESSIVE, progressive, cv2.IMWRITE_JPEG_OPTIMIZE, 1)
    plain = np.full((3_000, 4_000), 128, np.uint8)
    data = encode(".jpg", plain, *options, cv2.IMWRITE_JPEG_QUALITY, 1)
    assert decode_image(data, file=NAME).shape == (3_000, 4_000, 3)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    pipe, loop = tmp_path / "pipe.jpg", tmp_path / "loop.jpg"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    for path in (pipe, loop, tmp_path, tmp_path / "absent.jpg"):
        for function in (read_image, check_image):
            with pytest.raises(DataError) as caught:
                function(path)
            assert caught.value.file == path


def test_read_bytes_holds_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b"12345")
    assert read_bytes(path, limit=5) == b"12345"
    with pytest.raises(DataError, match="5 bytes, but the limit is 4"):
        read_bytes(path, limit=4)


@every_format
def test_whole_files_pass_the_check(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "image"
    path.write_bytes(data)
    assert check_image(path) == (WIDTH, HEIGHT)


@every_format
def test_files_without_their_end_fail_the_check(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "image"
    for kept in (len(data) // 2, len(data) * 9 // 10):
        path.write_bytes(data[:kept])
        with pytest.raises(DataError) as caught:
            check_image(path)
        assert caught.value.file == path


@pytest.mark.parametrize("junk", [bytes(10), b"x" * 64, b"x" * 100_000])
def test_bytes_after_the_end_marker_pass_the_check(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(jpeg() + junk)
    assert check_image(path) == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(read_image(path), decode_image(jpeg(), file=path))


def test_a_header_behind_long_metadata_is_found(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(after_start(jpeg(), segment(0xE1, bytes(65_000)) * 3))
    assert check_image(path) == (WIDTH, HEIGHT)


def test_images_are_found_by_stem(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.webp", "b.JPG", "c.txt", "d.tar.png"):
        (tmp_path / name).touch()
    found = {stem: path.name for stem, path in find_images(tmp_path).items()}
    assert found == {"a": "a.jpg", "b": "b.JPG", "d.tar": "d.tar.png"}
    with pytest.raises(DataError, match="does not exist"):
        find_images(tmp_path / "absent")


def test_real_photographs_equal_opencv(shared: Path) -> None:
    folder = shared / "data" / "bccd" / "VOCdevkit" / "BCCD" / "JPEGImages"
    paths = sorted(folder.iterdir())[::40]
    assert len(paths) > 5
    for path in paths:
        expected = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        np.testing.assert_array_equal(read_image(path), expected[..., ::-1])
        assert check_image(path) == expected.shape[1::-1]
