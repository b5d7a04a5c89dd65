"""Rules that hold for the whole source."""

import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "multibox"
MODULES = sorted(SOURCE.rglob("*.py"))


def test_layers() -> None:
    result = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=SOURCE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout


def test_only_one_module_knows_of_processes() -> None:
    users = [path.name for path in MODULES if "torch.distributed" in path.read_text()]
    assert users == ["distributed.py"]
