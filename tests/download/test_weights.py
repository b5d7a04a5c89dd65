"""Weights from a server to the verbs that use them by name. Every offered file is tried."""

import gzip
import hashlib
import io
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
from foreign_files import tiny_caffe
from oracles.caffemodel import caffemodel
from rich.console import Console
from unreliable_server import IMPATIENT, Request, Server, serve

from multibox.build import build_network
from multibox.cli.main import main
from multibox.commands.demo.dataset import draw_dataset
from multibox.data.formats.voc import read_voc
from multibox.download.catalogue import SOURCES, WEIGHTS
from multibox.download.download import download
from multibox.download.stored_weights import find_stored, weights_folder
from multibox.errors import ConfigError, DownloadError, StorageError, WeightsError
from multibox.storage.lock import RunLock
from multibox.weights.files import find_weights, make_header, read_weights

ARCHIVES = [name for name, weights in WEIGHTS.items() if weights.member]
PLAIN = [name for name, weights in WEIGHTS.items() if not weights.member]


def tar_gz(files: dict[str, bytes], *, level: int = 0) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=level) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def published_as(name: str, content: bytes) -> bytes:
    """Returns the bytes that a server sends: the weights, or an archive like Open Model Zoo's."""
    member = WEIGHTS[name].member
    if not member:
        return content
    folder = "models/VGGNet/VOC0712Plus/SSD"
    return tar_gz(
        {
            f"{folder}/deploy.prototxt": b"layer {}",
            f"{folder}/{member}": content,
            f"{folder}/solver.prototxt": b"net: 1",
        }
    )


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the folder of downloaded weights of a user who has none yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache" / "multibox" / "weights"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "VOC2007"
    draw_dataset(folder, train_images=4, test_images=2)
    return folder.parent


class Publisher:
    """A server with files, which the catalogue then lists instead of the published ones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files: dict[str, bytes] = {}
        self.server: Server
        self._monkeypatch = monkeypatch

    def answer(self, request: Request) -> None:
        request.send_file(self.files[request.path[1:]])

    def offer(self, name: str, sent: bytes, *, expected: bytes | None = None) -> None:
        weights = WEIGHTS[name]
        expected = sent if expected is None else expected
        self.files[weights.published.name] = sent
        published = weights.published._replace(
            size=len(expected),
            sha256=hashlib.sha256(expected).hexdigest(),
            addresses=(f"{self.server.address}/{weights.published.name}",),
        )
        self._monkeypatch.setitem(WEIGHTS, name, weights._replace(published=published))

    def download(self, *names: str, out: Path | None = None) -> list[Path]:
        return download(names, out, Console(quiet=True), policy=IMPATIENT)


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    publisher = Publisher(monkeypatch)
    with serve(lambda request: publisher.answer(request)) as publisher.server:
        yield publisher


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_file_is_downloaded_once_and_found_by_name(
    name: str, publisher: Publisher, folder: Path
) -> None:
    content = os.urandom(50_000)
    publisher.offer(name, published_as(name, content))
    assert publisher.download(name, name) == [find_stored(name)] == [find_weights(Path(name))]
    path = find_stored(name)
    assert path.parent == folder == weights_folder()
    assert path.read_bytes() == content
    record = {f"{path.name}.json"} if WEIGHTS[name].member else set()
    assert {one.name for one in folder.iterdir()} == {".lock", path.name, *record}
    publisher.download(name)
    assert len(publisher.server.requests) == 1


@pytest.mark.parametrize("name", WEIGHTS)
def test_what_is_published_can_be_checked(name: str) -> None:
    weights = WEIGHTS[name]
    assert re.fullmatch("[0-9a-f]{64}", weights.published.sha256)
    assert weights.published.size > 10**7
    assert all(address.startswith("https://") for address in weights.published.addresses)
    assert all(address.endswith(f"/{weights.published.name}") for address in weights.published[3])
    # PyTorch's names contain the first digits of the SHA-256.
    if prefix := re.search(r"-([0-9a-f]{8})\.pth$", weights.published.name):
        assert weights.published.sha256.startswith(prefix[1])
    assert weights.published.name.endswith(".tar.gz") == bool(weights.member)
    assert weights.licence
    assert weights.content


def test_names_and_files_are_unique() -> None:
    assert not SOURCES.keys() & WEIGHTS.keys()
    assert len({weights.stored_name for weights in WEIGHTS.values()}) == len(WEIGHTS)


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_wrong_hash_is_refused_and_nothing_is_kept(
    name: str, publisher: Publisher, folder: Path
) -> None:
    sound = published_as(name, bytes(50_000))
    wrong = bytes([sound[0] ^ 1]) + sound[1:]
    publisher.offer(name, wrong, expected=sound)
    with pytest.raises(DownloadError, match="its SHA-256 is not"):
        publisher.download(name)
    assert not folder.exists()
    with pytest.raises(WeightsError, match=f"^{name}: is not downloaded. Run multibox download"):
        find_weights(Path(name))


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_truncated_transfer_is_resumed(name: str, publisher: Publisher) -> None:
    content = os.urandom(200_000)
    sent = published_as(name, content)

    def cut_once(request: Request) -> None:
        if request.number == 1:
            request.start(200, Content_Length=len(sent), ETag='"1"')
            request.wfile.write(sent[:100_000])
        else:
            request.send_file(sent)

    publisher.offer(name, sent)
    publisher.answer = cut_once  # type: ignore[method-assign]
    publisher.download(name)
    assert find_stored(name).read_bytes() == content
    assert publisher.server.requests[1].headers["Range"] == "bytes=100000-"


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_transfer_that_always_ends_early_is_refused_and_resumed_later(
    name: str, publisher: Publisher
) -> None:
    content = os.urandom(30_000)
    sent = published_as(name, content)
    publisher.offer(name, sent)

    def cut(request: Request) -> None:
        request.start(200, Content_Length=len(sent), ETag='"1"')
        request.wfile.write(sent[:10_000])

    publisher.answer, sound = cut, publisher.answer  # type: ignore[method-assign]
    with pytest.raises(DownloadError, match=r"cannot be downloaded: .*(ended after|was cut)"):
        publisher.download(name)
    with pytest.raises(WeightsError, match="is not downloaded"):
        find_stored(name)
    publisher.answer = sound  # type: ignore[method-assign]
    publisher.download(name)
    assert find_stored(name).read_bytes() == content


@pytest.mark.parametrize("name", ARCHIVES)
def test_caffe_s_detectors_are_read_from_their_archives(name: str, publisher: Publisher) -> None:
    publisher.offer(name, published_as(name, caffemodel(tiny_caffe())))
    publisher.download(name)
    weights = read_weights(find_weights(Path(name)))
    assert (weights.origin, weights.network, len(weights.classes)) == ("Caffe", "ssd300-vgg16", 20)


def _link(name: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=0) as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda member: tar_gz({f"x/{member}x": b"1"}), "does not contain"),
        (_link, "does not contain"),
        (lambda _: b"not a gzip file" * 9, "is damaged"),
        (lambda _: gzip.compress(os.urandom(9_000)), "is damaged"),
        (lambda member: tar_gz({member: os.urandom(9_000)})[:5_000], "is damaged"),
        (
            lambda member: tar_gz({member: bytes(1 << 20)}, level=9),
            "contains more than an archive of",
        ),
    ],
)
def test_archives_without_the_weights_are_refused(
    make: Callable[[str], bytes], reason: str, publisher: Publisher, folder: Path
) -> None:
    name = ARCHIVES[0]
    publisher.offer(name, make(WEIGHTS[name].member))
    with pytest.raises(DownloadError, match=reason):
        publisher.download(name)
    rest = {path.name for path in folder.iterdir()} - {".lock", WEIGHTS[name].published.name}
    assert rest == set()


@pytest.mark.parametrize("name", [ARCHIVES[0], PLAIN[0]])
def test_damaged_weights_are_refused_and_not_overwritten(name: str, publisher: Publisher) -> None:
    publisher.offer(name, published_as(name, bytes(1_000)))
    (path,) = publisher.download(name)
    path.write_bytes(b"damaged")
    with pytest.raises(WeightsError, match=f"is not the published file. Remove it, .* {name}"):
        find_weights(Path(name))
    with pytest.raises(DownloadError, match="is not the published file"):
        publisher.download(name)
    assert path.read_bytes() == b"damaged"
    path.unlink()
    publisher.download(name)
    assert find_weights(Path(name)).read_bytes() == bytes(1_000)


@pytest.mark.parametrize("record", [None, "{", "[]", "{}", '{"sha256": 1, "archive_sha256": 2}'])
def test_unpacked_weights_without_their_record_are_refused(
    record: str | None, publisher: Publisher
) -> None:
    name = ARCHIVES[0]
    publisher.offer(name, published_as(name, bytes(1_000)))
    (path,) = publisher.download(name)
    place = path.with_name(f"{path.name}.json")
    place.unlink() if record is None else place.write_text(record)
    with pytest.raises(WeightsError, match="is not the published file"):
        find_weights(Path(name))


def test_an_archive_that_was_saved_by_hand_is_unpacked(publisher: Publisher, folder: Path) -> None:
    name = ARCHIVES[0]
    sent = published_as(name, bytes(1_000))
    publisher.offer(name, sent)
    folder.mkdir(parents=True)
    (folder / WEIGHTS[name].published.name).write_bytes(sent)
    publisher.download(name)
    assert find_weights(Path(name)).read_bytes() == bytes(1_000)
    assert publisher.server.requests == []


def test_out_is_another_folder_which_the_verbs_do_not_search(
    publisher: Publisher, tmp_path: Path, folder: Path
) -> None:
    name = PLAIN[0]
    publisher.offer(name, b"12345")
    (path,) = publisher.download(name, out=tmp_path / "mine")
    assert path == tmp_path / "mine" / WEIGHTS[name].stored_name
    assert path.read_bytes() == b"12345"
    assert not folder.exists()
    with pytest.raises(WeightsError, match="is not downloaded"):
        find_weights(Path(name))


def test_one_download_at_a_time(publisher: Publisher, folder: Path) -> None:
    publisher.offer(PLAIN[0], b"12345")
    with RunLock(folder), pytest.raises(StorageError, match="is in use by"):
        publisher.download(PLAIN[0])


def test_a_dataset_needs_a_folder() -> None:
    with pytest.raises(ConfigError, match="a dataset needs a folder"):
        download([PLAIN[0], "voc2007"], None, Console(quiet=True))


def test_a_name_never_hides_a_file_or_a_folder(publisher: Publisher, tmp_path: Path) -> None:
    name = PLAIN[0]
    publisher.offer(name, b"12345")
    publisher.download(name)
    mine = tmp_path / name
    mine.write_bytes(b"mine")
    assert find_weights(Path(name)) == Path(name)
    mine.unlink()
    mine.mkdir()
    with pytest.raises(WeightsError, match="contains no checkpoint"):
        find_weights(Path(name))
    (mine / "model.safetensors").write_bytes(b"mine")
    assert find_weights(Path(name)) == Path(name) / "model.safetensors"
    (mine / "model.safetensors").unlink()
    mine.rmdir()
    mine.symlink_to("nothing")
    with pytest.raises(WeightsError, match="does not exist"):
        find_weights(Path(name))
    # Only the name itself is a name.
    with pytest.raises(WeightsError, match="does not exist"):
        find_weights(tmp_path / "folder" / name)


@pytest.mark.parametrize(
    "line",
    [
        ["predict", "{}", "photo.jpg", "--out", "found"],
        ["evaluate", "{}", "--data", "data", "--split", "test"],
        ["convert", "{}", "new.safetensors"],
        ["train", "ssd300-lite", "--init", "{}", "--data", "data", "--out", "run"],
        ["train", "--init", "{}", "--data", "data", "--out", "run"],
    ],
)
def test_no_verb_downloads_unasked(
    line: list[str], drawn: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [word.format("ssd300-caffe-voc") for word in line]
    words = [str(drawn) if word == "data" else word for word in words]
    assert main(words) == WeightsError.exit_code
    error = "error: ssd300-caffe-voc: is not downloaded. Run multibox download ssd300-caffe-voc."
    assert capsys.readouterr().err.splitlines()[-1] == error
    assert not (tmp_path / "cache").exists()


def test_weights_are_used_by_name(
    publisher: Publisher, drawn: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    classes = read_voc(drawn, "test").classes
    network = build_network("ssd300-lite", len(classes))
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    header = make_header(network, "ssd300-lite", classes, "mine")
    data = safetensors.torch.save(tensors, header)
    name = "ssdlite320-torchvision-coco"
    publisher.offer(name, data)
    assert publisher.download(name) == [find_stored(name)]
    assert main(["convert", name, "new.safetensors"]) == 0
    image = next(drawn.rglob("*.jpg"))
    assert main(["predict", name, str(image), "--out", "found"]) == 0
    assert (tmp_path / "found" / f"{image.stem}.json").exists()
    assert main(["evaluate", name, "--data", str(drawn), "--split", "test", "--workers=0"]) == 0


def test_without_a_name_everything_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download"]) == 0
    out = capsys.readouterr().out
    for name in (*SOURCES, *WEIGHTS):
        assert f" {name} " in out
    assert "553.4 MB" in out
    assert "CC BY 4.0" in out


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "imagenet"]) == ConfigError.exit_code
    assert "unknown name 'imagenet'. Choose from voc2007" in capsys.readouterr().err


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError

    monkeypatch.setenv("XDG_CACHE_HOME", "relative/paths/are/ignored")
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ConfigError, match="Set the environment variable XDG_CACHE_HOME"):
        find_weights(Path("ssd300-caffe-voc"))
    monkeypatch.setattr(Path, "home", lambda: Path("/home/somebody"))
    assert weights_folder() == Path("/home/somebody/.cache/multibox/weights")
