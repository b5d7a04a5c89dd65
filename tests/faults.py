"""A disk that fails, and what of a folder may be left after a power cut.

`Disk` stands between Python and the operating system: whatever the code under test does below a
folder, by `os`, `io`, `pathlib`, `shutil` or `tempfile`, passes through it. It can refuse any
call, and it keeps a log from which `states` builds every folder that a kill or a power cut may
leave. The model is the weakest that POSIX allows: without an fsync of the file its content may be
absent, in part or zeros, and without an fsync of the folder each of its names may be the old one,
in whatever order they were changed.
"""

import errno
import io
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

Tree = dict[str, bytes | None]
"""The files below a folder with their content, and the folders (None), by relative path."""

NEEDS_ROOM = ("create", "mkdir", "write", "sync")
"""What a full disk refuses; it renames and removes."""


class Fault(NamedTuple):
    """What goes wrong.

    Attributes:
        number: The first call that fails, from 1.
        code: ENOSPC: the disk is full from that call on, and refuses what needs room. Any other:
            it fails once.
    """

    number: int
    code: int

    def hits(self, number: int, kind: str) -> bool:
        """Whether a call fails."""
        if self.code == errno.ENOSPC:
            return number >= self.number and kind in NEEDS_ROOM
        return number == self.number


class Event(NamedTuple):
    """A change of a folder's names, of a file's content, or their way to the disk.

    Attributes:
        kind: `link`, `unlink`, `move`, `data` or `sync`.
        node: The file or folder concerned.
        places: Folder and name: where it appears or goes from, and where it moves to.
        content: Of the whole file.
    """

    kind: str
    node: int
    places: tuple[tuple[int, str], ...] = ()
    content: bytes = b""


class Disk:
    """Watches a folder while its context lasts.

    Args:
        root: The folder; it must be there.
        fault: What goes wrong, if anything.

    Attributes:
        calls: Kind and path of each call that the fault could have hit.
        events: What they changed.
    """

    def __init__(self, root: Path, fault: Fault | None = None) -> None:
        self.calls: list[tuple[str, str]] = []
        self.events: list[Event] = []
        self._fault, self._is_full = fault, False
        self._numbers = itertools.count()
        self._nodes: dict[tuple[int, int], int] = {}
        self._folders: set[int] = set()
        self._contents: dict[int, bytes] = {}
        self._entries: dict[int, dict[str, int]] = {}
        self._root = self._add(root.stat())
        self._enter(root, self._root)
        self._real = {name: getattr(os, name) for name in (*_CHANGES, "open", "write")}
        self._io_open = io.open

    def __enter__(self) -> "Disk":
        for name in self._real:
            setattr(os, name, getattr(self, f"_os_{name}"))
        io.open = self._open
        return self

    def __exit__(self, *_: object) -> None:
        for name, function in self._real.items():
            setattr(os, name, function)
        io.open = self._io_open

    def states(self, start: int = 0) -> Iterator[Tree]:
        """Yields every distinct tree that a kill or a power cut after `start` events may leave."""
        seen = set()
        for end in range(start, len(self.events) + 1):
            for tree in self.states_after(end):
                key = frozenset(tree.items())
                if key not in seen:
                    seen.add(key)
                    yield tree

    def final(self) -> Tree:
        """The tree after all events, by the model."""
        return self._tree(self.events, lambda _, latest: latest)

    def _enter(self, folder: Path, node: int) -> None:
        self._folders.add(node)
        self._entries[node] = {}
        for path in folder.iterdir():
            child = self._entries[node][path.name] = self._add(path.stat())
            if path.is_dir():
                self._enter(path, child)
            else:
                self._contents[child] = path.read_bytes()

    def _add(self, found: os.stat_result) -> int:
        """Numbers a file or folder. The number of one that was removed may come again."""
        number = self._nodes[found.st_dev, found.st_ino] = next(self._numbers)
        return number

    def _forget(self, node: int | None) -> None:
        """Of a file or folder that was removed: another one may get its inode."""
        self._nodes = {inode: known for inode, known in self._nodes.items() if known != node}

    def _node(self, path: Any, dir_fd: int | None = None) -> int | None:
        """The number of a path or descriptor, if it is watched."""
        try:
            found = os.stat(path, dir_fd=dir_fd, follow_symlinks=isinstance(path, int))
        except (OSError, ValueError, TypeError):
            return None
        return self._nodes.get((found.st_dev, found.st_ino))

    def _place(self, path: Any, dir_fd: int | None) -> tuple[int, str] | None:
        """Folder and name of a path, if the folder is watched."""
        head, name = os.path.split(os.fspath(path))
        folder = self._node(head or ("." if dir_fd is None else dir_fd), dir_fd if head else None)
        return None if folder is None else (folder, os.fsdecode(name))

    def _call(self, kind: str, path: object) -> None:
        self.calls.append((kind, str(path)))
        if self._fault is not None and self._fault.hits(len(self.calls), kind):
            raise OSError(self._fault.code, os.strerror(self._fault.code))

    # The calls, under the names that they have in `os`.

    def _os_open(
        self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None
    ) -> int:
        place, node = self._place(path, dir_fd), self._node(path, dir_fd)
        if place is None:
            return self._real["open"](path, flags, mode, dir_fd=dir_fd)
        creates = node is None and flags & os.O_CREAT
        self._call("create" if creates else "open", path)
        descriptor = self._real["open"](path, flags, mode, dir_fd=dir_fd)
        if creates:
            node = self._add(os.fstat(descriptor))
            self._contents[node] = b""
            self.events.append(Event("link", node, (place,)))
        elif node is not None and flags & os.O_TRUNC:
            self._changed(descriptor)
        return descriptor

    def _os_write(self, descriptor: int, data: Any) -> int:
        if self._node(descriptor) is None:
            return self._real["write"](descriptor, data)
        content = bytes(data)
        try:
            self._call("write", descriptor)
        except OSError as error:
            # A disk that gets full takes what it can, and refuses the next call.
            half = len(content) // 2 if error.errno == errno.ENOSPC and not self._is_full else 0
            self._is_full = True
            if not half:
                raise
            content = content[:half]
        written = self._real["write"](descriptor, content)
        self._changed(descriptor)
        return written

    def _os_ftruncate(self, descriptor: int, length: int) -> None:
        if self._node(descriptor) is not None:
            self._call("truncate", descriptor)
        self._real["ftruncate"](descriptor, length)
        self._changed(descriptor)

    def _os_fsync(self, descriptor: int) -> None:
        node = self._node(descriptor)
        if node is not None:
            self._call("sync", Path(f"/proc/self/fd/{descriptor}").readlink())
            if node not in self._folders:
                self._changed(descriptor)
            self.events.append(Event("sync", node))

    def _os_mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        place = self._place(path, dir_fd)
        if place is not None:
            self._call("mkdir", path)
        self._real["mkdir"](path, mode, dir_fd=dir_fd)
        if place is not None:
            node = self._add(os.stat(path, dir_fd=dir_fd))
            self._folders.add(node)
            self._entries[node] = {}
            self.events.append(Event("link", node, (place,)))

    def _moved(self, name: str, source: Any, target: Any) -> None:
        node, places = self._node(source), (self._place(source, None), self._place(target, None))
        if node is not None:
            self._call("rename", source)
        replaced = self._node(target)
        self._real[name](source, target)
        self._forget(replaced)
        if node is not None and places[0] is not None and places[1] is not None:
            self.events.append(Event("move", node, (places[0], places[1])))

    def _os_rename(self, source: Any, target: Any) -> None:
        self._moved("rename", source, target)

    def _os_replace(self, source: Any, target: Any) -> None:
        self._moved("replace", source, target)

    def _removed(self, name: str, path: Any, dir_fd: int | None) -> None:
        node, place = self._node(path, dir_fd), self._place(path, dir_fd)
        if node is not None:
            self._call(name, path)
        self._real[name](path, dir_fd=dir_fd)
        self._forget(node)
        if node is not None and place is not None:
            self.events.append(Event("unlink", node, (place,)))

    def _os_unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._removed("unlink", path, dir_fd)

    def _os_remove(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._removed("remove", path, dir_fd)

    def _os_rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._removed("rmdir", path, dir_fd)

    def _os_scandir(self, path: Any = ".") -> Any:
        if self._node(path) is not None:
            self._call("list", path)
        return self._real["scandir"](path)

    def _os_listdir(self, path: Any = ".") -> Any:
        if self._node(path) is not None:
            self._call("list", path)
        return self._real["listdir"](path)

    def _open(
        self, file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **more: Any
    ) -> Any:
        writes = set(mode) & set("wxa+")
        watched = self._node(file) if isinstance(file, int) else self._place(file, None)
        # What is written and read is a nameless temporary file.
        if not writes or "+" in mode or watched is None:
            return self._io_open(file, mode, buffering, *rest, **more)
        flags = {"w": os.O_TRUNC, "x": os.O_EXCL, "a": os.O_APPEND}[next(iter(writes))]
        if not isinstance(file, int):
            file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, 0o666)
        raw = _Raw(file)
        if buffering == 0:
            return raw
        binary = io.BufferedWriter(raw)
        return binary if "b" in mode else io.TextIOWrapper(binary, *rest, **more)

    def _changed(self, descriptor: int) -> None:
        """Notes a file's content, if it is watched and another than before."""
        node = self._node(descriptor)
        if node is None:
            return
        with self._io_open(f"/proc/self/fd/{descriptor}", "rb") as file:
            content = file.read()
        if content != self._latest(node):
            self.events.append(Event("data", node, content=content))

    def _latest(self, node: int) -> bytes:
        for event in reversed(self.events):
            if event.kind == "data" and event.node == node:
                return event.content
        return self._contents[node]

    # The states.

    def states_after(self, end: int) -> Iterator[Tree]:
        """Yields the trees that a power cut after some events may leave, some more than once."""
        happened = self.events[:end]
        synced: dict[int, int] = {}
        for index, event in enumerate(happened):
            if event.kind == "sync":
                synced[event.node] = index
        durable, pending = set(), []
        for index, event in enumerate(happened):
            if event.places:
                if all(index < synced.get(folder, -1) for folder, _ in event.places):
                    durable.add(index)
                else:
                    pending.append(index)
        for chosen in _subsets(pending):
            names = [happened[index] for index in sorted(durable | set(chosen))]
            data = [event for event in happened if event.kind in ("data", "sync")]
            for remnant in (_lost, _whole, _cut, _zeros, _hole):
                yield self._tree([*names, *data], remnant)

    def _tree(self, events: Sequence[Event], remnant: Callable[[bytes, bytes], bytes]) -> Tree:
        """Applies names as they are, and to what of each file was not synced, `remnant`."""
        entries = {folder: dict(names) for folder, names in self._entries.items()}
        synced, latest = dict(self._contents), dict(self._contents)
        for event in events:
            if event.kind == "data":
                latest[event.node] = event.content
            elif event.kind == "sync" and event.node in latest:
                synced[event.node] = latest[event.node]
            if event.kind in ("unlink", "move"):
                folder, name = event.places[0]
                if entries[folder].get(name) == event.node:
                    del entries[folder][name]
            if event.kind in ("link", "move"):
                folder, name = event.places[-1]
                entries[folder][name] = event.node
        tree: Tree = {}
        pending = [("", self._root)]
        while pending:
            prefix, folder = pending.pop()
            for name, node in entries[folder].items():
                if node in self._folders:
                    tree[prefix + name] = None
                    pending.append((f"{prefix}{name}/", node))
                else:
                    same = synced[node] == latest[node]
                    tree[prefix + name] = (
                        latest[node] if same else remnant(synced[node], latest[node])
                    )
        return tree


_CHANGES = (
    *("ftruncate", "fsync", "mkdir", "rename", "replace", "unlink", "remove", "rmdir"),
    *("scandir", "listdir"),
)


class _Raw(io.RawIOBase):
    """An unbuffered file whose every call goes through `os`."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def write(self, data: Any) -> int:
        return os.write(self._descriptor, data)

    def close(self) -> None:
        if not self.closed:
            # A buffer that could not be written is not written later either.
            with suppress(OSError):
                super().close()
            os.close(self._descriptor)


def _lost(synced: bytes, _: bytes) -> bytes:
    return synced


def _whole(_: bytes, latest: bytes) -> bytes:
    return latest


def _cut(synced: bytes, latest: bytes) -> bytes:
    """Half of what came to it; of a file that was cut back, half of what went."""
    return max(synced, latest, key=len)[: (len(synced) + len(latest)) // 2]


def _zeros(synced: bytes, latest: bytes) -> bytes:
    """The new length without the new content."""
    return synced[: len(latest)].ljust(len(latest), b"\0")


def _hole(synced: bytes, latest: bytes) -> bytes:
    """The end of the new content without its beginning."""
    middle = (len(synced) + len(latest)) // 2
    return synced[: len(latest)].ljust(middle, b"\0") + latest[max(middle, len(synced)) :]


def _subsets(pending: Sequence[int]) -> Iterator[Sequence[int]]:
    """All of up to six; of more, those that leave out or keep a beginning, an end or one."""
    if len(pending) <= 6:
        for count in range(len(pending) + 1):
            yield from itertools.combinations(pending, count)
        return
    for place in range(len(pending) + 1):
        yield pending[:place]
        yield pending[place:]
        yield pending[place : place + 1]
        yield [*pending[:place], *pending[place + 1 :]]


def tree_of(folder: Path) -> Tree:
    """What is below a folder."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
    }


def plant(tree: Tree, folder: Path) -> Path:
    """Makes a folder with a tree in it."""
    folder.mkdir(parents=True)
    for name, content in sorted(tree.items()):
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)
    return folder
