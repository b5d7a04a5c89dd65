"""Fuzz target: video files, with changed bytes, sizes and names of other files."""

import io
import re
import struct
from functools import cache
from pathlib import Path

import av
import numpy as np
from fuzz.choices import Choices, damaged

from multibox.commands.prediction.items import VideoRef
from multibox.commands.prediction.video import frame_rate, frames

_SIZE, _FRAMES = (32, 24), 4
_KINDS = (
    *(("mp4", "mpeg4"), ("matroska", "mpeg4"), ("avi", "mjpeg"), ("mpegts", "mpeg2video")),
    *(("mp4", "libx264"), ("webm", "libvpx"), ("mjpeg", "mjpeg")),
)
_NUMBERS = (0, 1, 2, 24, 32, 4_096, 65_535, 1 << 20, (1 << 31) - 1, (1 << 32) - 1)
_BOXES = re.compile(
    rb"mvhd|tkhd|mdhd|hdlr|minf|dinf|dref|url |stsd|avc1|mp4v|esds|stts|stsc|stsz|stco|elst|edts|"
    rb"mdat|moov|trak|avih|strh|strf|idx1|movi|vids|MJPG|RIFF|LIST"
)
_TEXTS = (
    b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
    b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n",
    b"ffconcat version 1.0\nfile /etc/hostname\n",
    b'<?xml version="1.0"?><MPD><Period><BaseURL>file:///etc/</BaseURL></Period></MPD>',
    b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 9 RTP/AVP 96\n",
    b"[Reference]\nRef1=http://127.0.0.1:9/a.asf\n",
)


@cache
def _seeds() -> tuple[bytes, ...]:
    """A short video of each kind that this FFmpeg can write."""
    found = []
    for container, codec in _KINDS:
        if codec not in av.codecs_available:
            continue
        stream = io.BytesIO()
        with av.open(stream, "w", format=container) as opened:
            video = opened.add_stream(codec, rate=25)
            video.width, video.height = _SIZE
            video.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for number in range(_FRAMES):
                pixels = np.full((_SIZE[1], _SIZE[0], 3), 40 * number, np.uint8)
                opened.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            opened.mux(video.encode())
        found.append(stream.getvalue())
    return tuple(found)


def _changed(data: bytes, choices: Choices) -> bytes:
    """Changes numbers near the names of a container's boxes."""
    out = bytearray(data)
    places = [found.start() for found in _BOXES.finditer(data)] or [0]
    for _ in range(choices.below(4)):
        place = max(0, choices.pick(places) - 4 + choices.below(64))
        if place + 4 <= len(out):
            form = choices.pick((">I", "<I"))
            struct.pack_into(form, out, place, choices.pick(_NUMBERS))
    return bytes(out)


def video(choices: Choices, folder: Path) -> None:
    """Reads all frames of a file. It may open nothing else, whatever the file names."""
    data = _changed(choices.pick(_seeds()), choices)
    match choices.below(8):
        case 6:
            data = damaged(data, choices)
        case 7:
            data = choices.pick(_TEXTS) + choices.pick((b"", data))
    name = choices.pick(("v.mp4", "v.mkv", "v.avi", "v.m3u8", "v.sdp"))
    path = folder / name
    path.write_bytes(data)
    ref = VideoRef(str(path), str(path))
    try:
        assert 0 < frame_rate(ref) <= 1000
        numbers = []
        for frame in frames(ref, most=50):
            numbers.append(frame.number)
            assert frame.pixels.ndim == 3
        assert numbers == list(range(len(numbers)))
    finally:
        path.unlink()
