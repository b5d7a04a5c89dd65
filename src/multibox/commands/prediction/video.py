"""Reads the frames of videos, cameras and streams, and writes annotated videos, with PyAV.

A video file may name other files or addresses, as a playlist does. FFmpeg is allowed to open only
what the command line names, except for a playlist (`.m3u8`) at an http(s) address.
"""

import sys
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from multibox.commands.prediction.items import VideoRef, scheme_of
from multibox.data.files import file_facts
from multibox.data.images import max_pixels
from multibox.errors import ConfigError, DataError, MultiboxError, StorageError, counted
from multibox.hardware import usable_cores

LIVE_RATE = Fraction(25)
"""Frames per second of the annotated video of a camera or stream."""

_DEMUXERS = (
    *("mov", "matroska", "webm", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "asf", "ogg"),
    *("mjpeg", "h264", "hevc", "m4v", "live_flv"),
)
_STREAM_DEMUXERS = ("rtsp", "rtp", "mpjpeg", "hls")
_FEW_CORES = 4
_MAX_VIDEO_BYTES = 1 << 50
_TIMEOUT_S = (20.0, 60.0)
# The last frame may end this much before the video: containers round.
_TOLERANCE_S = 0.25


class Frame(NamedTuple):
    """A frame of a video.

    Attributes:
        number: Its number, from 0.
        time_s: Its time in the video in seconds.
        pixels: RGB pixels, upright.
    """

    number: int
    time_s: float
    pixels: UInt8[np.ndarray, "H W 3"]


def load_av() -> ModuleType:
    """Returns PyAV.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import av
    except ImportError:
        raise ConfigError(
            "videos, cameras and streams need PyAV, which is not installed",
            remedy="Install it with pip install 'multibox[video]'",
        ) from None
    return av


def frames(ref: VideoRef, *, most: int | None = None) -> Iterator[Frame]:
    """Yields the frames of a video, each once and in order.

    Args:
        ref: The video.
        most: Maximum number of frames. None: all.

    Raises:
        ConfigError: PyAV is not installed.
        DataError: The video cannot be opened, is damaged, or ends before its end. The frames before
            the damage are yielded first.
    """
    av = load_av()
    number, time_s, end_s, corrupt = 0, 0.0, 0.0, list[int]()
    try:
        with _open(av, ref) as container:
            stream = _video_stream(container, ref)
            stream.thread_count = _threads()
            step_s = 1 / float(stream.average_rate or 25)
            for decoded in container.decode(stream):
                if number == most:
                    return
                if decoded.width * decoded.height > max_pixels():
                    raise _too_large(ref, decoded.width, decoded.height)
                time_s = number * step_s if decoded.time is None else float(decoded.time)
                base = float(decoded.time_base or 0)
                end_s = time_s + (float(decoded.duration or 0) * base or step_s)
                if decoded.is_corrupt and not ref.live:
                    corrupt.append(number)
                turned = np.rot90(decoded.to_ndarray(format="rgb24"), decoded.rotation // 90)
                yield Frame(number, time_s, np.ascontiguousarray(turned))
                number += 1
            length_s = None if ref.live else _length_s(container, stream)
    except (av.error.FFmpegError, OSError, ValueError, IndexError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _damaged(ref, number, f"cannot be read: {reason}") from None
    if length_s is not None and end_s < length_s - max(2 * step_s, _TOLERANCE_S):
        reason = f"is cut short: it ends at {end_s:.2f} s, but its header says {length_s:.2f} s"
        raise _damaged(ref, number, reason)
    if corrupt:
        reason = f"has {counted(len(corrupt), 'damaged frame')}, the first is frame {corrupt[0]}"
        raise _damaged(ref, number, reason)
    if not number:
        raise _damaged(ref, number, "has no frames")


def frame_rate(ref: VideoRef) -> Fraction:
    """Returns the number of frames per second that a video declares; 25 if it declares none."""
    av = load_av()
    with suppress(MultiboxError, av.error.FFmpegError, OSError), _open(av, ref) as container:
        rate = _video_stream(container, ref).average_rate
        if rate is not None and 0 < rate <= 1000:
            return Fraction(rate)
    return LIVE_RATE


class AnnotatedVideo:
    """Writes frames to a video file. The file gets its name when it is complete.

    Args:
        path: The file, `.mp4`.
        rate: Frames per second.

    Raises:
        StorageError: The file cannot be written.
    """

    def __init__(self, path: Path, rate: Fraction) -> None:
        self._av, self._path, self._rate = load_av(), path, rate.limit_denominator(1001)
        self._partial = path.with_name(f".{path.name}.partial")
        try:
            self._container = self._av.open(str(self._partial), "w", format="mp4")
        except (self._av.error.FFmpegError, OSError) as error:
            raise self._failure(error) from None
        self._stream: Any = None
        self._size = (0, 0)

    def write(self, pixels: UInt8[np.ndarray, "H W 3"]) -> None:
        """Appends a frame. Frames of another size are scaled to the size of the first one."""
        height, width = pixels.shape[:2]
        try:
            if self._stream is None:
                codec = "libx264" if "libx264" in self._av.codecs_available else "mpeg4"
                options = (
                    {"preset": "veryfast", "threads": str(_threads())} if codec == "libx264" else {}
                )
                self._stream = self._container.add_stream(codec, rate=self._rate, options=options)
                # The colours of two neighbours are stored together, so the sides are even.
                self._size = width + width % 2, height + height % 2
                self._stream.width, self._stream.height = self._size
                self._stream.pix_fmt = "yuv420p"
                if codec == "mpeg4":
                    self._stream.bit_rate = max(1_000_000, 4 * width * height)
            if (width, height) != self._size:
                right, below = self._size[0] - width, self._size[1] - height
                if right in (0, 1) and below in (0, 1):
                    border = cv2.BORDER_REPLICATE
                    pixels = cv2.copyMakeBorder(pixels, 0, below, 0, right, border)
                else:
                    pixels = cv2.resize(pixels, self._size)
            frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            self._container.mux(self._stream.encode(frame))
        except (self._av.error.FFmpegError, OSError) as error:
            raise self._failure(error) from None

    def close(self) -> None:
        """Completes the file. A video without frames leaves no file."""
        try:
            if self._stream is not None:
                self._container.mux(self._stream.encode())
            self._container.close()
            if self._stream is None:
                self._partial.unlink(missing_ok=True)
            else:
                self._partial.replace(self._path)
        except (self._av.error.FFmpegError, OSError) as error:
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> StorageError:
        reason = getattr(error, "strerror", None) or str(error)
        with suppress(OSError):
            self._partial.unlink()
        return StorageError(f"cannot be written ({reason})", file=self._path)


def _open(av: ModuleType, ref: VideoRef) -> Any:
    """Opens a video. What a file contains does not make FFmpeg open anything else."""
    scheme = scheme_of(ref.address)
    options = {"max_pixels": str(max_pixels()), "format_whitelist": ",".join(_DEMUXERS)}
    if scheme:
        options["format_whitelist"] = ",".join((*_DEMUXERS, *_STREAM_DEMUXERS))
        options["protocol_whitelist"] = f"{scheme},http,https,tcp,tls,udp,rtp,crypto"
        options["rtsp_transport"] = "tcp"
        return av.open(ref.address, options=options, timeout=_TIMEOUT_S)
    if ref.live:
        device = ("avfoundation", ref.address) if sys.platform == "darwin" else ("v4l2", "")
        return av.open(device[1] or f"/dev/video{ref.address}", format=device[0])
    path = Path(ref.address)
    file_facts(path, limit=_MAX_VIDEO_BYTES)
    options["protocol_whitelist"] = "none"
    # FFmpeg sees a file object without a name, so it cannot look beside the file.
    return av.open(_Unnamed(path), options=options)


def _threads() -> int:
    """Returns the number of threads of a codec: 0 (as many as cores), or 1 if cores are few."""
    return 0 if usable_cores() > _FEW_CORES else 1


class _Unnamed:
    """A file for FFmpeg to read, without the file's name."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self.read, self.seek, self.tell = self._file.read, self._file.seek, self._file.tell

    def close(self) -> None:
        self._file.close()

    def __del__(self) -> None:
        self._file.close()


def _video_stream(container: Any, ref: VideoRef) -> Any:
    if not container.streams.video:
        raise DataError(
            "has no video stream", kind="image-format", file=ref.name, remedy="Use a video"
        )
    stream = container.streams.video[0]
    context = stream.codec_context
    if context is None:
        raise DataError(
            "has a video stream in an unknown format",
            kind="image-format",
            file=ref.name,
            remedy="Convert it to H.264 in an .mp4 file",
        )
    if context.width * context.height > max_pixels():
        raise _too_large(ref, context.width, context.height)
    return stream


def _length_s(container: Any, stream: Any) -> float | None:
    """Returns the length that a video declares in seconds, or None."""
    # Without its index, which comes last, the duration of an AVI file is derived from its size.
    if container.format.name == "avi" and stream.frames and stream.average_rate:
        return float(stream.frames / stream.average_rate)
    if stream.duration and stream.time_base:
        start = float((stream.start_time or 0) * stream.time_base)
        return start + float(stream.duration * stream.time_base)
    text = stream.metadata.get("DURATION", "")
    parts = text.split(":")
    if len(parts) == 3:
        with suppress(ValueError):
            return float(parts[0]) * 3600 + float(parts[1]) * 60 + float(parts[2])
    if container.duration and len(container.streams) == 1:
        return float(container.duration) / 1e6
    return None


def _too_large(ref: VideoRef, width: int, height: int) -> DataError:
    return DataError(
        f"has frames of {width} x {height} pixels, but the limit is {max_pixels()} in all",
        kind="image-too-large",
        file=ref.name,
        remedy="Scale the video down, or set the environment variable MULTIBOX_MAX_PIXELS",
    )


def _damaged(ref: VideoRef, count: int, reason: str) -> DataError:
    position = f"after frame {count - 1}" if count else None
    return DataError(
        reason,
        kind="image-damaged",
        file=ref.name,
        position=position,
        remedy="Check the source" if ref.live else "Replace it with an intact copy",
    )
