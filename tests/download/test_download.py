"""The verb `download`, from a server to a folder that can be used for training."""

import hashlib
import os
import re
import resource
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from unreliable_server import IMPATIENT, Request, Server, make_identity, serve

from multibox.cli.arguments import parse
from multibox.cli.main import main
from multibox.commands.demo.dataset import draw_dataset
from multibox.data.formats.voc import read_voc
from multibox.download.catalogue import SOURCES, Published, Source
from multibox.download.download import download
from multibox.errors import ConfigError, DownloadError, StorageError
from multibox.storage.lock import RunLock

NAMES = ("trainval.tar", "test.tar", "images.zip")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder of archives: a drawn dataset as the two of VOC2007, and a zip."""
    folder = tmp_path_factory.mktemp("published")
    drawn = folder / "VOCdevkit" / "VOC2007"
    draw_dataset(drawn, train_images=6, test_images=4)
    lists = drawn / "ImageSets" / "Main"
    for split in ("trainval", "test"):
        ids = (lists / f"{split}.txt").read_text().split()
        with tarfile.open(folder / f"{split}.tar", "w") as archive:
            for path in (lists / f"{split}.txt", *drawn.rglob("*.jpg"), *drawn.rglob("*.xml")):
                if path.suffix == ".txt" or path.stem in ids:
                    archive.add(path, path.relative_to(folder))
            # Both archives of VOC2007 have this file.
            archive.add(__file__, "VOCdevkit/VOC2007/ImageSets/readme")
    with zipfile.ZipFile(folder / "images.zip", "w") as images:
        images.write(__file__, "val2017/1.jpg")
    return folder


@pytest.fixture
def server(published: Path) -> Iterator[Server]:
    def answer(request: Request) -> None:
        request.send_file((published / request.path[1:]).read_bytes())

    with serve(answer) as running:
        yield running


def _sources(published: Path, address: str) -> dict[str, Source]:
    trainval, test, images = (
        Published(
            name,
            (published / name).stat().st_size,
            hashlib.sha256((published / name).read_bytes()).hexdigest(),
            (f"{address}/{name}",),
        )
        for name in NAMES
    )
    return {
        "voc": Source("drawn images", "none", ".", "VOCdevkit", (trainval, test)),
        "coco": Source("an archive", "none", "coco", "coco", (images,)),
    }


class Download:
    """Runs the verb with the datasets of a server."""

    def __init__(self, published: Path, server: Server, out: Path) -> None:
        self.sources, self.out = _sources(published, server.address), out
        self.console = Console(record=True, width=300, quiet=False, file=sys.stderr)

    def __call__(self, *names: str) -> list[Path]:
        return download(names, self.out, self.console, sources=self.sources, policy=IMPATIENT)


@pytest.fixture
def run(published: Path, server: Server, tmp_path: Path) -> Download:
    return Download(published, server, tmp_path / "new" / "data")


def _files(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_downloaded_dataset_is_identical_and_can_be_trained_on(
    run: Download, published: Path, tmp_path: Path
) -> None:
    assert run("voc", "coco", "voc") == [run.out / "VOCdevkit", run.out / "coco"]
    for name in NAMES:
        assert (run.out / "archives" / name).read_bytes() == (published / name).read_bytes()
    # The same archives unpacked by tar and unzip, in the same order.
    for name in NAMES[:2]:
        with tarfile.open(published / name) as archive:
            archive.extractall(tmp_path / "theirs", filter="data")
    with zipfile.ZipFile(published / NAMES[2]) as images:
        images.extractall(tmp_path / "theirs" / "coco")
    ours = {name: content for name, (content, _) in _files(run.out).items()}
    theirs = {name: content for name, (content, _) in _files(tmp_path / "theirs").items()}
    assert {name: ours[name] for name in theirs} == theirs
    rest = sorted(ours.keys() - theirs.keys())
    assert rest == sorted(
        [".lock", *(f"archives/{name}" for name in NAMES)]
        + [f".downloaded/{name}.json" for name in NAMES]
    )
    assert len(read_voc(run.out, "2007:trainval").annotations) == 6
    assert len(read_voc(run.out / "VOCdevkit", "2007:test").annotations) == 4


def test_a_second_call_does_nothing(run: Download, server: Server) -> None:
    run("voc")
    shutil.rmtree(run.out / "archives")
    before, requests = _files(run.out), len(server.requests)
    run.out.chmod(0o500)
    try:
        assert run("voc") == [run.out / "VOCdevkit"]
    finally:
        run.out.chmod(0o700)
    assert _files(run.out) == before
    assert len(server.requests) == requests


def test_missing_files_are_restored_and_others_stay(run: Download, server: Server) -> None:
    run("voc")
    voc = run.out / "VOCdevkit" / "VOC2007"
    before, requests = _files(voc), len(server.requests)
    victims = [*sorted(voc.rglob("*.jpg"))[:3], voc / "ImageSets" / "Main" / "test.txt"]
    for victim in victims:
        victim.unlink()
    (voc / "mine.txt").write_text("mine")
    run("voc")
    after = _files(voc)
    assert after.pop("mine.txt")[0] == b"mine"
    assert {name: content for name, (content, _) in after.items()} == {
        name: content for name, (content, _) in before.items()
    }
    assert len(server.requests) == requests


def test_a_user_s_file_is_never_overwritten(run: Download) -> None:
    mine = run.out / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / "test.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(StorageError, match=r"test\.txt: differs from the file in the archive"):
        run("voc")
    assert mine.read_text() == "mine"
    assert not (run.out / ".unpacking").exists()
    mine.unlink()
    run("voc")
    assert len(read_voc(run.out, "2007:test").annotations) == 4


def test_a_partly_unpacked_archive_is_unpacked_again(run: Download, published: Path) -> None:
    (run.out / "archives").mkdir(parents=True)
    shutil.copy(published / "trainval.tar", run.out / "archives")
    # The state that a killed process leaves.
    (run.out / ".unpacking" / "VOCdevkit").mkdir(parents=True)
    (run.out / ".unpacking" / "VOCdevkit" / "half").write_text("")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with tarfile.open(published / "trainval.tar") as archive:
        largest = max(member.size for member in archive)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"trainval\.tar: cannot be unpacked"):
            run("voc")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in run.out.iterdir()) == [".lock", "archives"]
    run("voc")
    assert len(read_voc(run.out, "2007:trainval+2007:test").annotations) == 10
    assert not (run.out / "VOCdevkit" / "half").exists()


def test_an_archive_that_was_there_is_used_only_if_it_is_the_published_one(
    run: Download, server: Server, published: Path
) -> None:
    (run.out / "archives").mkdir(parents=True)
    wrong = run.out / "archives" / "images.zip"
    wrong.write_bytes(b"something else")
    with pytest.raises(DownloadError, match="not the published file"):
        run("coco")
    assert wrong.read_bytes() == b"something else"
    shutil.copy(published / "images.zip", wrong)
    run("coco")
    assert server.requests == []


def test_a_full_disk_is_found_before_anything_is_fetched(
    run: Download, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    with pytest.raises(StorageError, match=r"needed for archives .* 0 MiB are free"):
        run("voc")
    assert server.requests == []


def test_a_folder_that_cannot_be_written_is_refused(run: Download) -> None:
    run.out.parent.mkdir()
    run.out.write_text("a file")
    with pytest.raises(StorageError, match="data"):
        run("voc")
    run.out.unlink()
    run.out.mkdir()
    (run.out / "archives").write_text("a file")
    with pytest.raises(StorageError, match="archives: cannot be used"):
        run("voc")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(run: Download) -> None:
    run.out.mkdir(parents=True, mode=0o500)
    with pytest.raises(StorageError, match="cannot be written"):
        run("voc")


def test_one_download_per_folder(run: Download) -> None:
    with RunLock(run.out), pytest.raises(StorageError, match="is in use by"):
        run("voc")


@pytest.mark.parametrize("names", [(), ("voc", "imagenet")])
def test_unknown_datasets_are_refused(run: Download, names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="Choose from voc, coco"):
        run(*names)
    assert not run.out.exists()


def test_an_interruption_says_how_to_resume(run: Download, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("multibox.download.download.fetch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run("voc")
    assert "Run the same command to resume" in run.console.export_text()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl's command")
def test_the_command_line_over_https(
    published: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def answer(request: Request) -> None:
        file = published / request.path[1:]
        request.send_file(file.read_bytes()) if file.is_file() else request.send(b"", 404)

    identity = make_identity(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
    line = ["download", "voc2007", "--out", str(tmp_path / "data")]
    with serve(answer, identity=identity) as server:
        monkeypatch.setitem(SOURCES, "voc2007", _sources(published, f"{server.address}/x")["voc"])
        assert main(line) == DownloadError.exit_code
        assert "responds with 404" in capsys.readouterr().err
        monkeypatch.setitem(SOURCES, "voc2007", _sources(published, server.address)["voc"])
        assert main(line) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path / 'data' / 'VOCdevkit'}\n"
    assert "test.tar: checked and unpacked" in captured.err
    assert len(read_voc(tmp_path / "data", "trainval").annotations) == 6


@pytest.mark.parametrize("name", SOURCES)
def test_every_dataset_can_be_requested_and_checked(name: str) -> None:
    assert parse(["download", name, "--out", "data"]) is not None
    for archive in SOURCES[name].archives:
        assert re.fullmatch("[0-9a-f]{64}", archive.sha256)
        assert all(address.startswith("https://") for address in archive.addresses)
        assert all(address.endswith(f"/{archive.name}") for address in archive.addresses)


def test_other_verbs_do_not_import_network_modules() -> None:
    code = (
        "import sys, multibox.__main__, multibox.cli.main, multibox.commands.demo.demo\n"
        "from multibox.commands import evaluate, predict, report, train\n"
        "print(*(name for name in ('urllib3', 'multibox.download.https') if name in sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "\n"
