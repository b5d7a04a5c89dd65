import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from multibox.commands.predict import Many, Options, Predicted, predict_many
from multibox.commands.prediction.chunks import Shard, parse_shard
from multibox.commands.prediction.sources import Listing
from multibox.detector import Detector
from multibox.errors import ConfigError, StorageError

parquet = pytest.importorskip("pyarrow.parquet")

OPTIONS = Options(0.3, save=("parquet",), batch_size=2)


def detect(run: Path, photos: Path, out: Path, shard: str = "1/1", **changes: object) -> Predicted:
    options = OPTIONS._replace(**changes)
    many = Many(run, device="cpu", shard=shard, chunk_size=3)
    detector = Detector.open(run, device="cpu")
    return predict_many(detector, Listing([str(photos)]), many, out=out, options=options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_each_image_has_one_row_with_its_detections(run: Path, photos: Path) -> None:
    done = detect(run, photos, photos.parent / "out")
    rows = parquet.read_table(photos.parent / "out").to_pylist()
    assert [row["image"] for row in rows] == [str(photos / f"{n}.png") for n in range(7)]
    assert (done.images, done.objects) == (7, sum(len(row["detections"]) for row in rows))
    detector = Detector.open(run, device="cpu")
    for row in rows:
        expected = detector(row["image"], score_threshold=0.3)
        assert [found["name"] for found in row["detections"]] == [e.name for e in expected]
        for found, other in zip(row["detections"], expected, strict=True):
            assert found["score"] == pytest.approx(other.score, abs=1e-5)
            sides = [found[side] for side in ("x0", "y0", "x1", "y1")]
            assert sides == pytest.approx(other.box_px, abs=1e-3)


def test_shards_and_resumed_commands_write_the_same_bytes(run: Path, photos: Path) -> None:
    whole, shared = photos.parent / "whole", photos.parent / "shared"
    detect(run, photos, whole)
    for shard in ("2/2", "1/2", "2/2"):
        detect(run, photos, shared, shard)
    assert contents(shared) == contents(whole)
    (shared / "part-00000001.parquet").unlink()
    partial = shared / ".part-00000001.parquet.123.partial"
    partial.write_bytes(b"left by a process that was killed")
    done = detect(run, photos, shared)
    assert contents(shared) == contents(whole)
    # Earlier files count, too.
    assert done.images == 7


def test_an_image_that_cannot_be_read_is_a_row_and_stays_known(run: Path, photos: Path) -> None:
    (photos / "4.png").write_bytes(b"hello")
    out = photos.parent / "out"
    for _ in range(2):
        done = detect(run, photos, out)
        assert (done.images, done.refused) == (6, 1)
        assert "4.png: is neither JPEG" in str(done.refusals[0])
    rows = parquet.read_table(out).to_pylist()
    assert [bool(row["error"]) for row in rows] == [False] * 4 + [True] + [False] * 2
    sound = [row for row in rows if not row["error"]]
    # The other images of its batch have the same bits as without it.
    (photos / "4.png").write_bytes((photos / "3.png").read_bytes())
    detect(run, photos, photos.parent / "sound")
    again = parquet.read_table(photos.parent / "sound").to_pylist()
    assert [row for row in again if not row["image"].endswith("4.png")] == sound


def test_results_of_other_images_or_settings_are_not_mixed(run: Path, photos: Path) -> None:
    out = photos.parent / "out"
    detect(run, photos, out)
    before = contents(out)
    with pytest.raises(StorageError, match="other settings"):
        detect(run, photos, out, score_threshold=0.4)
    (photos / "9.png").write_bytes((photos / "0.png").read_bytes())
    with pytest.raises(StorageError, match="the sources have changed"):
        detect(run, photos, out)
    for number in (9, 3, 4, 5, 6):
        (photos / f"{number}.png").unlink()
    with pytest.raises(StorageError, match="do not have any more"):
        detect(run, photos, out)
    assert contents(out) == before
    (out / "part-00000000.parquet").write_bytes(b"mine")
    with pytest.raises(StorageError, match="not a Parquet file"):
        detect(run, photos, out)


def test_a_process_that_is_killed_leaves_whole_files_only(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    detect(run, photos, whole)
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, time\n"
        f"sys.path[:0] = {json.dumps(sys.path)}\n"
        "from pathlib import Path\n"
        "from tiny import TINY\n"
        "from multibox.build import NETWORKS\n"
        "from multibox.commands.prediction import chunks\n"
        "from multibox.commands import predict\n"
        "from multibox.commands.prediction.sources import Listing\n"
        "from multibox.detector import Detector\n"
        "NETWORKS['tiny'] = TINY\n"
        "load = chunks.load_image\n"
        "chunks.load_image = lambda *a, **k: time.sleep(0.1) or load(*a, **k)\n"
        "run, photos, out = map(Path, sys.argv[1:])\n"
        "options = predict.Options(0.3, save=('parquet',), batch_size=2)\n"
        "many = predict.Many(run, device='cpu', chunk_size=3)\n"
        "listing = Listing([str(photos)])\n"
        "predict.predict_many(Detector.open(run, device='cpu'), listing, many, out=out, "
        "options=options)\n"
    )
    command = [sys.executable, str(program), str(run), str(photos), str(out)]
    for files in (1, 2):
        process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
        end = time.monotonic() + 300
        while len(list(out.glob("part-*"))) < files and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    detect(run, photos, out)
    assert contents(out) == contents(whole)


def test_shards_are_counted_from_one() -> None:
    assert parse_shard("1/4") == Shard(0, 4)
    assert parse_shard("4/4") == Shard(3, 4)
    for text in ("0/4", "5/4", "1", "1/0", "a/b", "-1/2", "", "1/2/3"):
        with pytest.raises(ConfigError, match="I/N"):
            parse_shard(text)


def test_videos_are_refused(run: Path, photos: Path) -> None:
    (photos / "x.mp4").touch()
    with pytest.raises(ConfigError, match="is a video"):
        detect(run, photos, photos.parent / "out")
