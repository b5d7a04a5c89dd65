"""Writes the results of many images as Parquet files, one for each chunk of the images.

Chunk n has the images `n * size` to `(n + 1) * size - 1` in the order of the sources. Its file
appears when it is complete, and depends only on its images, the network and the settings. So a
stopped command is resumed by repeating it, several machines share the chunks (`--shard`), and the
files are the same in the end.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from multibox.commands.prediction.items import ImageRef, VideoRef
from multibox.commands.prediction.pipeline import (
    How,
    Refused,
    batched,
    detect_batches,
    load_image,
    map_ahead,
)
from multibox.detector import Detector
from multibox.errors import ConfigError, StorageError, one_line

_METADATA = b"multibox"
_MAX_EXAMPLES = 20


class Chunk(NamedTuple):
    """Consecutive images.

    Attributes:
        number: Number of the chunk, from 0.
        images: The images.
    """

    number: int
    images: tuple[ImageRef, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the names and places of the images."""
        return hashlib.sha256(json.dumps(self.images).encode()).hexdigest()


class Shard(NamedTuple):
    """A share of the chunks: every one with `chunk number % shards == number`.

    Attributes:
        number: Number of the shard, from 0.
        shards: Number of shards.
    """

    number: int = 0
    shards: int = 1


class Done(NamedTuple):
    """Counts of one or more chunks.

    Attributes:
        images: Number of images that were read.
        objects: Number of detections.
        refused: Number of images that cannot be read.
        examples: The errors of the first of them.
    """

    images: int = 0
    objects: int = 0
    refused: int = 0
    examples: tuple[str, ...] = ()

    def plus(self, other: "Done") -> "Done":
        """Returns the sum of two."""
        examples = (*self.examples, *other.examples)[:_MAX_EXAMPLES]
        return Done(
            self.images + other.images,
            self.objects + other.objects,
            self.refused + other.refused,
            examples,
        )


def parse_shard(text: str) -> Shard:
    """Returns the shard of a text such as `1/4`: the first of four.

    Raises:
        ConfigError: The text has another form.
    """
    index, _, count = text.partition("/")
    if index.isdecimal() and count.isdecimal() and 1 <= int(index[:9]) <= int(count[:9]):
        return Shard(int(index) - 1, int(count))
    raise ConfigError(
        f"cannot read the shard {text!r}", remedy="Use I/N, from 1/N to N/N, such as --shard 2/4"
    )


def split_into_chunks(sources: Iterable[ImageRef | VideoRef], size: int) -> Iterator[Chunk]:
    """Yields the images in chunks.

    Raises:
        ConfigError: One of the sources is a video.
    """

    def images() -> Iterator[ImageRef]:
        for source in sources:
            if isinstance(source, VideoRef):
                raise ConfigError(
                    f"{source.name} is a video, and Parquet files are for images only",
                    remedy="Leave videos out, or use --save json",
                )
            yield source

    iterator, number = images(), 0
    while part := tuple(islice(iterator, size)):
        yield Chunk(number, part)
        number += 1


class ChunkFiles:
    """The Parquet files of the chunks in a folder.

    Args:
        folder: The folder. It is created if it does not exist.
        settings: Everything that results depend on, except for the images. Files with other
            settings are refused.

    Raises:
        ConfigError: pyarrow is not installed.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        try:
            import pyarrow.parquet
        except ImportError:
            raise ConfigError(
                "Parquet files need pyarrow, which is not installed",
                remedy="Install it with pip install 'multibox[parquet]'",
            ) from None
        self._parquet = pyarrow.parquet
        self._folder, self._settings = folder, settings

    def path(self, number: int) -> Path:
        """Returns the file of a chunk."""
        return self._folder / f"part-{number:08d}.parquet"

    def find(self, chunk: Chunk) -> Done | None:
        """Returns the counts of a chunk from its file, or None if the file does not exist.

        Raises:
            StorageError: It is of other images or settings, or `predict` did not write it.
        """
        path = self.path(chunk.number)
        if not os.path.lexists(path):
            return None
        try:
            found = self._parquet.read_schema(path).metadata or {}
            record = json.loads(found.get(_METADATA, b"{}"))
        except (OSError, ValueError) as error:
            raise StorageError(
                f"is not a Parquet file that can be read ({one_line(str(error))[:200]})",
                file=path,
                remedy="Choose another folder for --out",
            ) from None
        if record.get("images") != chunk.digest:
            reason = "has the results of other images: the sources have changed"
        elif record.get("settings") != self._settings:
            reason = "has results of another network or other settings"
        else:
            images, objects, refused, examples = record["done"]
            return Done(images, objects, refused, tuple(examples))
        raise StorageError(
            reason,
            file=path,
            remedy="Repeat the command as it was, or choose another folder for --out",
        )

    def refuse_surplus(self, count: int) -> None:
        """Checks that there are no files of chunks that do not exist any more.

        Args:
            count: Number of all chunks.

        Raises:
            StorageError: There is such a file.
        """
        expected = {self.path(number).name for number in range(count)}
        for path in sorted(self._folder.glob("part-*.parquet")):
            if path.name not in expected:
                raise StorageError(
                    "has results of images that the sources do not have any more",
                    file=path,
                    remedy="Choose another folder for --out",
                )

    def write(self, chunk: Chunk, rows: Sequence[dict[str, Any]], done: Done) -> None:
        """Writes the file of a chunk completely or not at all.

        Args:
            chunk: The images.
            rows: A row for each image.
            done: The counts, which the file stores.

        Raises:
            StorageError: The disk is full or fails.
        """
        import pyarrow as pa

        found = pa.struct(
            [("name", pa.string()), ("score", pa.float32())]
            + [(side, pa.float32()) for side in ("x0", "y0", "x1", "y1")]
        )
        record = {"images": chunk.digest, "settings": self._settings, "done": done}
        schema = pa.schema(
            [
                ("image", pa.string()),
                ("width", pa.int32()),
                ("height", pa.int32()),
                ("error", pa.string()),
                ("detections", pa.list_(found)),
            ],
            metadata={_METADATA: json.dumps(record).encode()},
        )
        path = self.path(chunk.number)
        # Each process has a name of its own. Readers of Parquet leave out names with a dot.
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._parquet.write_table(pa.Table.from_pylist(list(rows), schema), partial)
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
                partial.replace(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
        except (OSError, pa.ArrowException) as error:
            raise StorageError(
                f"cannot be written ({getattr(error, 'strerror', None) or error})",
                file=path,
                remedy="Check that the folder is writable and the disk not full",
            ) from None
        for left in self._folder.glob(f".{path.name}.*.partial"):
            # A process that was killed left it.
            left.unlink(missing_ok=True)


def detect_chunk(detector: Detector, chunk: Chunk, how: How, files: ChunkFiles) -> Done:
    """Detects the objects in the images of a chunk, and writes its file.

    Args:
        detector: Detects the objects.
        chunk: The images.
        how: Settings. All batches have the same size, so that the bits of a result do not depend
            on the other images.
        files: Writes the file.

    Raises:
        StorageError: The file cannot be written.
    """
    loaded = map_ahead(
        lambda ref: load_image(detector, ref, "", how.fetch, keep_pixels=False),
        chunk.images,
        ahead=2 * how.batch_size,
    )
    rows, done = list[dict[str, Any]](), Done()
    batches = batched(loaded, how.batch_size)
    for results in detect_batches(detector, batches, how, pad=True):
        for result in results:
            if isinstance(result, Refused):
                text = str(result.error)
                rows.append({"image": _text(result.source.name), "error": _text(text)})
                done = done.plus(Done(refused=1, examples=(text.removesuffix("."),)))
                continue
            image = result.image
            found = [
                {"name": name, "score": score, "x0": x0, "y0": y0, "x1": x1, "y1": y1}
                for name, score, (x0, y0, x1, y1) in result.named
            ]
            rows.append(
                {
                    "image": _text(image.source.name),
                    "width": image.width,
                    "height": image.height,
                    "detections": found,
                }
            )
            done = done.plus(Done(images=1, objects=len(found)))
    files.write(chunk, rows, done)
    return done


class MissingChunks:
    """The chunks of a shard that have no file yet, as an iterable that can be read once.

    Args:
        sources: All images.
        size: Number of images in a chunk.
        shard: The share of the chunks.
        files: The files that exist.

    Attributes:
        found: The counts of the files that exist, so far.
    """

    def __init__(
        self, sources: Iterable[ImageRef | VideoRef], size: int, shard: Shard, files: ChunkFiles
    ) -> None:
        self._sources, self._size, self._shard, self._files = sources, size, shard, files
        self.found = Done()

    def __iter__(self) -> Iterator[Chunk]:
        """Yields the chunks.

        Raises:
            StorageError: A file is of other images or settings.
            ConfigError: One of the sources is a video.
        """
        count = 0
        for chunk in split_into_chunks(self._sources, self._size):
            count += 1
            if chunk.number % self._shard.shards != self._shard.number:
                continue
            found = self._files.find(chunk)
            if found is None:
                yield chunk
            else:
                self.found = self.found.plus(found)
        self._files.refuse_surplus(count)


def _text(text: str) -> str:
    """Returns a text in which bytes of paths that are not UTF-8 are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()
