"""What no module of the product may import, call or write: read from the syntax, not from text."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "multibox"
MODULES = sorted(SOURCE.rglob("*.py"))

# Formats that carry code, shells, and code from text.
IMPORTS = (
    *("pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "dbm", "yaml"),
    *("subprocess", "pty", "ctypes", "cffi", "code", "codeop", "runpy", "torch.hub", "torch.jit"),
    *("xml.dom", "xml.sax", "lxml", "imp"),
)
NETWORK = (
    *("socket", "ssl", "http", "urllib", "urllib3", "requests", "httpx", "aiohttp", "ftplib"),
    *("smtplib", "telnetlib", "socketserver", "xmlrpc", "asyncio", "webbrowser"),
    *("anyio", "h11", "starlette", "uvicorn"),
)
CALLS = (
    *("eval", "exec", "compile", "__import__", "breakpoint", "importlib.import_module"),
    *("os.system", "os.popen", "os.fork", "os.exec", "os.spawn", "os.posix_spawn", "os.startfile"),
    *(
        "tempfile.mktemp",
        "torch.load",
        "torch.save",
        "torch.hub",
        "torch.jit",
        "torch.utils.model_zoo",
    ),
    *("numpy.load", "numpy.fromregex", "h5py.get_config", "cv2.FileStorage", "cv2.dnn"),
    *("xml.etree.ElementTree.parse", "xml.etree.ElementTree.fromstring"),
    *("xml.etree.ElementTree.XML", "xml.etree.ElementTree.iterparse"),
    *("xml.etree.ElementTree.XMLParser", "shutil.unpack_archive"),
)
METHODS = ("extractall", "extract", "load_model", "load_module")
# Other implementations' files: read by the unpickler that knows tensors only, written for them.
ALLOWED_CALLS = {
    "weights/pytorch.py": ["torch.load(path, map_location='cpu', weights_only=True)"],
    "weights/qfgaohao.py": ["torch.save(state, path)"],
    "weights/export.py": ["torch.save({'model': state} if target == 'lufficc' else state, path)"],
}
# The lock names the host that holds it; the processes of one run talk to each other; the transfer
# reads what `https` opened. Workers ask glibc to keep their memory.
ALLOWED_IMPORTS = {
    "download/https.py": {"ssl", "urllib.parse", "urllib.request", "urllib3"},
    "download/fetch.py": {"urllib3"},
    "download/address.py": {"urllib.parse"},
    # They take addresses apart.
    "commands/prediction/items.py": {"urllib.parse"},
    "commands/prediction/sources.py": {"urllib.parse"},
    # It answers this machine only.
    "commands/report_server.py": {"http"},
    # The service answers requests; it opens no connection. `http` has the names of statuses.
    "commands/service/application.py": {"asyncio", "http", "starlette"},
    "commands/service/limits.py": {"http"},
    "commands/service/server.py": {"socket", "uvicorn"},
    # It takes addresses apart.
    "data/formats/tree.py": {"urllib.parse"},
    # It removes percent signs from file names.
    "data/formats/yolo.py": {"urllib.parse"},
    # It takes the events of YAML's parser, never the objects of its loaders.
    "data/formats/yolo_description.py": {"yaml"},
    "data/workers.py": {"ctypes"},
    "storage/lock.py": {"socket"},
    "processes/heartbeat.py": {"socket"},
    "processes/distributed.py": {"socket"},
}
# What reads datasets: nothing in it makes, alters or removes a file.
READERS = (
    *("formats/voc", "formats/coco", "formats/layouts", "formats/tree", "reading", "dataset"),
    *("files", "images", "tiff", "formats/json_files", "formats/outlines"),
    *("formats/labelme", "formats/label_studio", "formats/plain_text"),
    *("formats/yolo", "formats/yolo_description", "formats/csv_tables", "formats/csv_columns"),
    *("splits/draw", "splits/near_duplicates"),
    *("formats/voc_files", "formats/voc_lists", "formats/voc_xml", "formats/cvat"),
    "formats/xml_files",
    *("image_metadata", "check/findings", "check/split_checks", "check/dataset_checks"),
    *("check/annotation_checks", "geometry", "pixels", "pipeline"),
)
WRITES = (
    *("write", "write_text", "write_bytes", "writelines", "mkdir", "makedirs", "touch", "unlink"),
    *("rename", "replace_with", "rmdir", "rmtree", "chmod", "symlink_to", "hardlink_to", "utime"),
    *("mkstemp", "imwrite", "tofile", "savez", "copyfile", "copytree", "truncate"),
)


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yields the name in the module and what it stands for, of all that is imported anywhere."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for item in node.names:
                name = item.asname or item.name.partition(".")[0]
                yield name, item.name if item.asname else name
                yield "", item.name
        elif isinstance(node, ast.ImportFrom):
            for item in node.names:
                yield item.asname or item.name, f"{node.module}.{item.name}"


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def within(name: str, banned: tuple[str, ...]) -> bool:
    return any(name == ban or name.startswith(f"{ban}.") for ban in banned)


def offences(source: str, place: str) -> list[str]:
    """Returns what a module does that none may."""
    tree = ast.parse(source)
    known = dict(imports(tree))
    found = []
    for _, name in imports(tree):
        allowed = tuple(ALLOWED_IMPORTS.get(place, ()))
        if within(name, (*IMPORTS, *NETWORK)) and not within(name, allowed):
            found.append(f"import {name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if "http://" in node.value and place != "download/https.py":
                found.append("http://")
        elif isinstance(node, ast.Call):
            first, _, rest = dotted(node.func).partition(".")
            name = ".".join(filter(None, (known.get(first, first), rest)))
            keywords = {item.arg: ast.unparse(item.value) for item in node.keywords}
            bad = within(name, CALLS) or name.startswith(("os.exec", "os.spawn", "os.posix_spawn"))
            bad |= isinstance(node.func, ast.Attribute) and node.func.attr in METHODS
            bad |= keywords.get("shell") == "True" or keywords.get("allow_pickle") == "True"
            bad |= keywords.get("weights_only") == "False"
            if bad and ast.unparse(node) not in ALLOWED_CALLS.get(place, ()):
                found.append(ast.unparse(node))
    return found


def writes(source: str) -> list[str]:
    """Returns the calls of a module that may write a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func).rpartition(".")[2]
        texts = [
            item.value
            for item in (*node.args, *(keyword.value for keyword in node.keywords))
            if isinstance(item, ast.Constant) and isinstance(item.value, str)
        ]
        opens = name == "open" and any(set(text) & set("wax+") for text in texts)
        if name in WRITES or opens:
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_nothing_unsafe_is_imported_or_called(path: Path) -> None:
    place = path.relative_to(SOURCE).as_posix()
    source = path.read_text(encoding="utf-8")
    assert offences(source, place) == []
    for call in ALLOWED_CALLS.get(place, ()):
        assert call in ast.unparse(ast.parse(source))
    if place in {f"data/{name}.py" for name in READERS}:
        assert writes(source) == []


def test_the_readers_are_there() -> None:
    assert {f"data/{name}.py" for name in READERS} <= {
        path.relative_to(SOURCE).as_posix() for path in MODULES
    }


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads as read",
        "import os.path, marshal as m",
        "def f():\n    import yaml",
        "import subprocess as s\ns.run('ls', shell=True)",
        "import torch as t\nt.load(path, weights_only=False)",
        "from torch import load\nload(path)",
        "from torch.hub import load_state_dict_from_url",
        "import os\nos.system('ls')",
        "from os import system\nsystem('ls')",
        "import os\nos.execvp('ls', [])",
        "eval(text)",
        "compile(text, '', 'exec')",
        "import tarfile\ntarfile.open(path).extractall(folder, filter='data')",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import tempfile\ntempfile.mktemp()",
        "from tempfile import mktemp\nmktemp()",
        "import socket",
        "from urllib.request import urlopen",
        "import requests",
        "ADDRESS = 'http://example.org/x'",
        "from xml.etree import ElementTree\nElementTree.parse(path)",
    ],
)
def test_the_gate_refuses(source: str) -> None:
    assert offences(source, "x.py")


@pytest.mark.parametrize(
    "source",
    [
        "path.open('w')",
        "open(path, mode='r+b')",
        "path.write_text('')",
        "import shutil\nshutil.rmtree(path)",
        "cv2.imwrite(name, image)",
    ],
)
def test_writes_are_seen(source: str) -> None:
    assert writes(source)


@pytest.mark.parametrize(
    "source",
    ["re.compile('x')", "model.eval()", "torch.compile(model)", "safetensors.torch.load(data)"],
)
def test_the_gate_lets_pass(source: str) -> None:
    assert not offences(f"import re, torch, safetensors.torch\n{source}", "x.py")
