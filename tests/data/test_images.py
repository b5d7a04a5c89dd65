"""Stored pixels: formats by content, sizes before decoding, and nothing that is cut short."""

import io
import os
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from multibox.data.files import read_bytes
from multibox.data.images import (
    check_image,
    decode_image,
    find_images,
    image_size,
    read_image,
)
from multibox.errors import ConfigError, DataError

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


def tiff(image: np.ndarray, compression: str | None = None, **tags: int | tuple[int, ...]) -> bytes:
    """Encodes with Pillow. `tags` are replaced by number, as in `_274=6`."""
    buffer = io.BytesIO()
    info = {int(name[1:]): value for name, value in tags.items()}
    Image.fromarray(image).save(buffer, "TIFF", compression=compression, tiffinfo=info)
    return buffer.getvalue()


def plain_tiff(image: np.ndarray, order: str = "<", photometric: int | None = None) -> bytes:
    """Encodes without a library: the directory first, uint8 or uint16, grey or RGB."""
    height, width, *rest = image.shape
    channels = rest[0] if rest else 1
    bits = 8 * image.dtype.itemsize
    place = 8 + 2 + 9 * 12 + 4
    shown = (2 if rest else 1) if photometric is None else photometric
    depth = (3, channels, place) if channels == 3 else (3, 1, bits)
    numbers = ((256, 4, 1, width), (257, 4, 1, height), (258, *depth), (259, 3, 1, 1))
    numbers += ((262, 3, 1, shown), (273, 4, 1, place + 6), (277, 3, 1, channels))
    numbers += ((278, 4, 1, height), (279, 4, 1, image.nbytes))
    entries = b"".join(
        struct.pack(f"{order}HHIHH", tag, form, count, value, 0)
        if (form, count) == (3, 1)
        else struct.pack(f"{order}HHII", tag, form, count, value)
        for tag, form, count, value in numbers
    )
    head = b"II*\0" if order == "<" else b"MM\0*"
    head += struct.pack(f"{order}IH", 8, len(numbers)) + entries + bytes(4)
    pixels = image.astype(image.dtype.newbyteorder(order)).tobytes()
    return head + struct.pack(f"{order}3H", bits, bits, bits) + pixels


LOSSLESS_WEBP = (cv2.IMWRITE_WEBP_QUALITY, 101)
ENCODED = {
    "JPEG": jpeg(),
    "PNG": encode(".png", photograph()),
    "BMP": encode(".bmp", photograph()),
    "WebP lossless": encode(".webp", photograph(), *LOSSLESS_WEBP),
    "WebP lossy": encode(".webp", photograph(), cv2.IMWRITE_WEBP_QUALITY, 90),
    "TIFF": tiff(photograph()),
    "TIFF LZW": tiff(photograph(), "tiff_lzw"),
    "TIFF Deflate": tiff(photograph(), "tiff_adobe_deflate"),
    "TIFF PackBits": tiff(photograph(), "packbits"),
    "TIFF directory first": plain_tiff(photograph()),
    "TIFF big-endian": plain_tiff(photograph(), ">"),
}
every_format = pytest.mark.parametrize("data", ENCODED.values(), ids=ENCODED.keys())


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(body) + 2).to_bytes(2, "big") + body


def after_start(data: bytes, inserted: bytes) -> bytes:
    return data[:2] + inserted + data[2:]


LOSSLESS = ["PNG", "BMP", "WebP lossless", *(name for name in ENCODED if "TIFF" in name)]


@pytest.mark.parametrize("name", LOSSLESS)
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
    for data in (encode(".png", grey), encode(".bmp", grey), tiff(grey, "tiff_lzw")):
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
    odd = deep + np.arange(256, dtype=np.uint16)[:80, None] % 255
    for data in (encode(".png", deep), plain_tiff(deep), plain_tiff(deep, ">")):
        np.testing.assert_array_equal(decode_image(data, file=NAME), photograph())
    for order in "<>":
        grey = np.repeat((odd[..., :1] >> 8).astype(np.uint8), 3, axis=2)
        data = plain_tiff(odd[..., 0], order)
        np.testing.assert_array_equal(decode_image(data, file=NAME), grey)
    data = plain_tiff(~odd[..., 0], photometric=0)
    np.testing.assert_array_equal(decode_image(data, file=NAME), grey)
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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_the_orientation_of_a_tiff_is_not_applied(
    orientation: int, compression: str | None, tmp_path: Path
) -> None:
    data = tiff(photograph(), compression, _274=orientation)
    assert image_size(data, file=NAME) == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(decode_image(data, file=NAME), photograph())


def test_the_first_page_of_a_tiff_is_used() -> None:
    first, second = Image.fromarray(photograph()), Image.fromarray(photograph()[::2])
    buffer = io.BytesIO()
    first.save(buffer, "TIFF", save_all=True, append_images=[second], compression="tiff_lzw")
    np.testing.assert_array_equal(decode_image(buffer.getvalue(), file=NAME), photograph())


def test_transparent_palette_and_cmyk_tiffs_become_rgb() -> None:
    alpha = np.full((HEIGHT, WIDTH), 7, np.uint8)
    data = tiff(np.dstack([photograph(), alpha]))
    np.testing.assert_array_equal(decode_image(data, file=NAME), photograph())
    for mode in ("P", "CMYK", "1"):
        image, buffer = Image.fromarray(photograph()).convert(mode), io.BytesIO()
        image.save(buffer, "TIFF")
        expected = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(decode_image(buffer.getvalue(), file=NAME), expected)


@pytest.mark.parametrize(
    "data",
    [
        tiff(photograph(), "jpeg"),
        tiff(photograph()[..., 0].astype(np.float32)),
        tiff(photograph()[..., 0].astype(np.int32)),
        # Pillow reads it in the other byte order only.
        plain_tiff(photograph()[..., 0].astype(np.uint16), ">", photometric=0),
    ],
)
def test_unsupported_tiffs_are_refused(data: bytes) -> None:
    with pytest.raises(DataError, match="is not supported") as caught:
        decode_image(data, file=NAME)
    assert caught.value.kind == "image-format"


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate"])
@pytest.mark.parametrize("tenths", range(2, 9, 2))
def test_damaged_strips_of_a_tiff_are_refused(compression: str, tenths: int) -> None:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    smooth = np.stack([3 * x % 256, 5 * y % 256, (x + y) % 256], axis=-1).astype(np.uint8)
    data = bytearray(tiff(smooth, compression))
    place = len(data) * tenths // 10
    data[place : place + 20] = b"\xff" * 20
    # OpenCV fills the rest of the strip with black, without an error.
    lax = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert lax.shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(DataError, match="damaged or cut short"):
        decode_image(bytes(data), file=NAME)


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
    flat = bytearray(plain_tiff(photograph()))
    flat[18:22] = flat[30:34] = struct.pack("<I", 30_000)
    return {
        "TIFF": bytes(flat),
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
    monkeypatch.setattr("multibox.data.tiff.TiffImageFile", never)
    with pytest.raises(DataError, match=r"the limit is 50000000.*set .* MULTIBOX_MAX_PIXELS to"):
        decode_image(data, file=NAME)


@every_format
def test_an_environment_variable_changes_the_limit(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MULTIBOX_MAX_PIXELS", str(WIDTH * HEIGHT))
    assert decode_image(data, file=NAME).shape == (HEIGHT, WIDTH, 3)
    monkeypatch.setenv("MULTIBOX_MAX_PIXELS", str(WIDTH * HEIGHT - 1))
    with pytest.raises(DataError, match="the limit is 3839 in all"):
        decode_image(data, file=NAME)


def test_a_higher_limit_admits_more_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(".png", np.zeros((8_000, 7_000), np.uint8))
    with pytest.raises(DataError, match="7000 x 8000"):
        decode_image(data, file=NAME)
    monkeypatch.setenv("MULTIBOX_MAX_PIXELS", "56000000")
    assert decode_image(data, file=NAME).shape == (8_000, 7_000, 3)


@pytest.mark.parametrize("text", ["", "many", "0", "-5", "1e9", "1_000", "9" * 5000, str(2**31)])
def test_a_limit_that_is_not_a_number_is_refused(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MULTIBOX_MAX_PIXELS", text)
    with pytest.raises(ConfigError, match="MULTIBOX_MAX_PIXELS is"):
        decode_image(ENCODED["PNG"], file=NAME)


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
    others = ("e.TIF", "f.tiff", "g.jfif", "h.jpe")
    for name in others:
        (tmp_path / name).touch()
    found = {stem: path.name for stem, path in find_images(tmp_path).items()}
    assert [found.pop(name[0]) for name in others] == [*others]
    assert found == {"a": "a.jpg", "b": "b.JPG", "d.tar": "d.tar.png"}
    with pytest.raises(DataError, match="does not exist"):
        find_images(tmp_path / "absent")


@pytest.mark.parametrize(
    ("there", "reason"),
    [
        (("img001.tif",), r"img001\.jpg: does not exist, but the folder has img001\.tif\."),
        (("IMG001.JPG",), r"but the folder has IMG001\.JPG\."),
        (("img001.JPG", "img001.png"), r"but the folder has img001\.JPG and img001\.png\."),
        (("img002.jpg", "img001.txt"), r"does not exist\."),
    ],
)
def test_a_missing_file_s_message_names_similar_files(
    tmp_path: Path, there: tuple[str, ...], reason: str
) -> None:
    for name in there:
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=reason):
        read_image(tmp_path / "img001.jpg")


def test_real_photographs_equal_opencv(shared: Path) -> None:
    folder = shared / "data" / "bccd" / "VOCdevkit" / "BCCD" / "JPEGImages"
    paths = sorted(folder.iterdir())[::40]
    assert len(paths) > 5
    for path in paths:
        expected = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        np.testing.assert_array_equal(read_image(path), expected[..., ::-1])
        assert check_image(path) == expected.shape[1::-1]
