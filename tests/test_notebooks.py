"""The notebooks in docs/notebooks hold no outputs, and run from top to bottom without a network."""

import os
import shlex
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from nbformat import NotebookNode

from multibox.build import new_network
from multibox.cli.arguments import parse
from multibox.commands.demo.dataset import CLASSES
from multibox.recipes import ssd300_lite
from multibox.ssd.network import initialise
from multibox.storage.safetensors_io import serialized
from multibox.weights.files import make_header

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
# In the order in which a reader runs them: each needs the run of the first.
NAMES = ("train", "predict", "fine-tune")
SMALL = {
    "train": 'RECIPE, IMAGES, STEPS = "ssd300-lite", 30, 2',
    "predict": "",
    "fine-tune": "IMAGES, STEPS = 8, 1",
}


def _read(name: str) -> NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)  # type: ignore[no-untyped-call]


def _run(notebook: NotebookNode, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a notebook in a folder, with this environment's `multibox` and without a network."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for name, value in (("PATH", path), ("OMP_NUM_THREADS", "1"), ("MPLBACKEND", "agg")):
        monkeypatch.setenv(name, value)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()


def _commands(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.source.startswith("!")]


def test_all_notebooks_are_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_has_no_outputs_and_known_commands(name: str) -> None:
    notebook = _read(name)
    nbformat.validate(notebook)  # type: ignore[no-untyped-call]
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    (parameters,) = (cell for cell in cells if "parameters" in cell.metadata.get("tags", []))
    values: dict[str, object] = {}
    exec(parameters.source, values)
    values["network"] = "ssd300-lite"
    assert _commands(notebook)
    for cell in _commands(notebook):
        words = shlex.split(cell.source.format_map(values))
        assert words[0] == "!multibox"
        assert parse(words[1:]) is not None


def test_the_notebook_of_the_api_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ssd300_lite()
    network = new_network(config, len(CLASSES))
    initialise(network, torch.Generator().manual_seed(0))
    header = make_header(network, config.network, tuple(CLASSES), "CC0")
    with (tmp_path / "weights.safetensors").open("wb") as file:
        file.writelines(serialized(network.state_dict(), header))
    notebook = _read("predict")
    commands = _commands(notebook)
    notebook.cells = [cell for cell in notebook.cells if cell not in commands]
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = 'MODEL = "weights.safetensors"'
    _run(notebook, tmp_path, monkeypatch)


@pytest.mark.slow
def test_the_notebooks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        notebook = _read(name)
        for cell in notebook.cells:
            if "parameters" in cell.metadata.get("tags", []):
                cell.source += f"\n{SMALL[name]}"
        # A command that fails ends the notebook.
        for cell in _commands(notebook):
            cell.source += '\nassert _exit_code == 0, "the command failed"'
        _run(notebook, tmp_path, monkeypatch)
    assert (tmp_path / "runs/photos/report/index.html").exists()
    assert (tmp_path / "detector.onnx").exists()
    assert (tmp_path / "runs/boats-and-fish/evaluations").is_dir()
