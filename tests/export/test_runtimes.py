"""Files from others are read, or refused before the runtime sees them."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from exported import write_exported

from multibox.errors import ConfigError, WeightsError
from multibox.export import runtimes
from multibox.export.runtimes import open_exported


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_exported(tmp_path_factory.mktemp("onnx"), "onnx")


@pytest.fixture(scope="module")
def xml_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_exported(tmp_path_factory.mktemp("openvino"), "openvino")


def external(model: onnx.ModelProto) -> None:
    (tensor,) = [each for each in model.graph.initializer if each.name == "iou_threshold"]
    onnx.external_data_helper.set_external_data(tensor, location="../secret", length=4)
    tensor.ClearField("raw_data")


def external_attribute(model: onnx.ModelProto) -> None:
    node = model.graph.node.add(op_type="Constant", output=["x"])
    tensor = onnx.numpy_helper.from_array(np.zeros(1, np.float32), "secret")
    onnx.external_data_helper.set_external_data(tensor, location="/etc/hostname")
    node.attribute.append(onnx.helper.make_attribute("value", tensor))


def loop(model: onnx.ModelProto) -> None:
    model.graph.node.add(op_type="Loop", name="forever")


def branch(model: onnx.ModelProto) -> None:
    node = model.graph.node.add(op_type="Identity", name="branch")
    node.attribute.append(onnx.helper.make_attribute("g", onnx.GraphProto()))


def foreign(model: onnx.ModelProto) -> None:
    model.graph.node.add(op_type="Anything", domain="com.example")


def function(model: onnx.ModelProto) -> None:
    model.functions.add(name="f")


def no_metadata(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def set_metadata(key: str, value: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        (found,) = [each for each in model.metadata_props if each.key == key]
        found.value = value

    return change


def broken(model: onnx.ModelProto) -> None:
    model.graph.node[-1].op_type = "NoSuchOperator"


def other_outputs(model: onnx.ModelProto) -> None:
    del model.graph.output[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external, "iou_threshold: refers to another file"),
        (external_attribute, "refers to another file"),
        (loop, "forever: has the operator :Loop, which is not allowed"),
        (branch, "branch: has the operator :Identity, which is not allowed"),
        (foreign, "com.example:Anything, which is not allowed"),
        (function, "has functions"),
        (no_metadata, "has metadata of the format None"),
        (set_metadata("classes", "[" * 100_000), "damaged metadata"),
        (set_metadata("classes", '["a", "a"]'), "damaged metadata"),
        (set_metadata("image_size", "[64, 1000000]"), "damaged metadata"),
        (set_metadata("score_threshold", "7"), "score threshold '7'"),
        (broken, "cannot be opened"),
    ],
)
def test_other_onnx_files_are_refused(
    onnx_file: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], None], message: str
) -> None:
    model = onnx.load(onnx_file)
    change(model)
    path = tmp_path / "x.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(WeightsError, match=message):
        open_exported(path)


@pytest.mark.parametrize(
    "change", [other_outputs, set_metadata("classes", '["cat"]')], ids=["outputs", "classes"]
)
def test_outputs_that_are_not_detections_are_refused(
    onnx_file: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], None]
) -> None:
    model = onnx.load(onnx_file)
    change(model)
    path = tmp_path / "x.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(WeightsError, match=r"does not return detections|cannot be run"):
        open_exported(path).detect(np.zeros((1, 64, 64, 3), np.uint8))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('<net name="detector"', '<!DOCTYPE net [<!ENTITY a "b">]><net name="detector"', "DTD"),
        ("<net ", "<nets ", "is not XML"),
        ('type="TopK"', 'type="Loop"', "has a loop or a branch"),
        ('offset="0"', 'offset="99999999"', r"beyond the \.bin file"),
        ('offset="0"', 'offset="-8"', r"beyond the \.bin file"),
        ("<multibox>", "<other>", "is not XML"),
        ('<format value="multibox-1" />', "", "has metadata of the format None"),
        ('type="TopK"', 'type="NoSuchOperator"', "cannot be opened"),
    ],
)
def test_other_xml_files_are_refused(
    xml_file: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = xml_file.read_text()
    assert old in text
    path = tmp_path / "x.xml"
    path.write_text(text.replace(old, new, 1))
    path.with_suffix(".bin").write_bytes(xml_file.with_suffix(".bin").read_bytes())
    with pytest.raises(WeightsError, match=message):
        open_exported(path)


def test_the_numbers_must_lie_beside_the_xml(xml_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.xml"
    path.write_bytes(xml_file.read_bytes())
    with pytest.raises(WeightsError, match=r"x\.bin: cannot be read .*Keep the \.bin"):
        open_exported(path)


@pytest.mark.parametrize("name", ["x.onnx", "x.xml"])
def test_files_that_do_not_exist_or_are_too_large_are_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WeightsError, match="cannot be read"):
        open_exported(tmp_path / name)
    (tmp_path / name).write_bytes(b"x" * 11)
    monkeypatch.setattr(runtimes, "_MAX_BYTES", 10)
    monkeypatch.setattr(runtimes, "_MAX_XML_BYTES", 10)
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(WeightsError, match="more than 10 bytes"):
        open_exported(tmp_path / name)


@pytest.mark.parametrize("name", ["x.onnx", "x.xml"])
def test_without_the_runtime_the_remedy_is_named(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"not installed\. Run pip install 'multibox\["):
        open_exported(tmp_path / name)


SILENT = """
import json, sys
seen = []
sys.addaudithook(lambda event, _: event.startswith("socket.") and seen.append(event))
from pathlib import Path
import numpy as np
from multibox.export.runtimes import open_exported
found = open_exported(Path(sys.argv[1])).detect(np.zeros((1, 64, 64, 3), np.uint8))
import openvino
loaded = [name for name, module in sys.modules.items()
          if name.startswith("openvino_telemetry") and module is not None]
print(json.dumps([len(found), seen, loaded, openvino.__version__ != ""]))
"""


def test_openvino_opens_no_socket_and_loads_no_telemetry(xml_file: Path, tmp_path: Path) -> None:
    """A process that imports openvino for the first time, as a user with an empty home."""
    result = subprocess.run(
        [sys.executable, "-c", SILENT, str(xml_file)],
        capture_output=True,
        text=True,
        check=True,
        env={"HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "PATH": ""},
    )
    assert json.loads(result.stdout) == [1, [], [], True]
    assert not list(tmp_path.rglob("*telemetry*"))


def test_openvino_alone_would_load_its_telemetry(tmp_path: Path) -> None:
    """Else the test above would show nothing."""
    code = "import openvino, sys; print('openvino_telemetry' in sys.modules)"
    # Its consent is in the home, where this file refuses it.
    consent = tmp_path / "intel" / "openvino_telemetry"
    consent.parent.mkdir()
    consent.write_text("0")
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"HOME": str(tmp_path), "PATH": "", "CI": "true"},
    )
    assert result.stdout.strip() == "True"


@pytest.mark.parametrize("suffix", ["onnx", "xml"])
def test_ctrl_c_ends_a_prediction_with_one_line(
    request: pytest.FixtureRequest, tmp_path: Path, suffix: str
) -> None:
    """The runtimes keep Python's handler of SIGINT, also after they computed."""
    model = request.getfixturevalue("onnx_file" if suffix == "onnx" else "xml_file")
    image = tmp_path / "a.png"
    cv2.imwrite(str(image), np.zeros((90, 120, 3), np.uint8))
    code = """if True:
    import os, signal, sys
    from multibox.cli.main import main
    from multibox.export.runtimes import ExportedDetector
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run = ExportedDetector.detect
    def detect(self, *arguments, **options):
        run(self, *arguments, **options)
        os.kill(os.getpid(), signal.SIGINT)
        return run(self, *arguments, **options)
    ExportedDetector.detect = detect
    sys.exit(main(sys.argv[1:]))
    """
    words = ["predict", str(model), str(image), "--save", "none"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.strip()) == (130, "Interrupted.")
