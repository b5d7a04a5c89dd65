"""Rules that hold for the whole source."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "multibox"
MODULES = sorted(SOURCE.rglob("*.py"))

# Unsafe loaders, code from data, shells.
BANNED = re.compile(
    r"\bpickle\b|(?<!safetensors\.)torch\.(load|save)\(|(?<!\.)\b(eval|exec)\(|shell=True|extractall\(|os\.system"
)
# Other implementations' files: read by the unpickler that knows tensors only, written for them.
ALLOWED = {
    "formats/pytorch.py": ["torch.load(path, map_location='cpu', weights_only=True)"],
    "formats/writing.py": ["torch.save({'model': state} if target == 'lufficc' else state, path)"],
}


def test_layers() -> None:
    result = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=SOURCE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_nothing_unsafe_is_called(path: Path) -> None:
    code = "\n".join(
        ast.unparse(node)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call | ast.Import | ast.ImportFrom)
    )
    for call in ALLOWED.get(path.relative_to(SOURCE).as_posix(), ()):
        assert call in code
        code = code.replace(call, "")
    assert not BANNED.search(code)


def test_only_one_module_knows_of_processes() -> None:
    users = [path.name for path in MODULES if "torch.distributed" in path.read_text()]
    assert users == ["distributed.py"]


def test_only_download_reaches_for_the_network() -> None:
    # The lock names the host that holds it; the processes of one run talk to each other.
    users = [
        path.name
        for path in MODULES
        if re.search(
            r"^ *(import|from) (socket|ssl|urllib3?|https?|httpx|requests|ftplib)\b",
            path.read_text(),
            re.M,
        )
    ]
    assert users == ["distributed.py", "https.py", "liveness.py", "lock.py", "transfer.py"]
