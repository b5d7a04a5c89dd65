from pathlib import Path

import pytest

from multibox.config import Config
from multibox.errors import ConfigError
from multibox.storage.run_folder import read_run, write_json


@pytest.mark.parametrize("name", ["config.json", "run.json"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b" " * (4 << 20) + b"{}", "has more than 4194304 bytes"),
        (b"\xff", "cannot be read"),
        (b"[" * 100_000, "recursion|not JSON|cannot be read"),
        (b"{", "not JSON|cannot be read"),
        (b"[]", "is not a JSON object|[Ee]xpected|object"),
    ],
)
def test_a_file_that_no_run_wrote_is_refused(
    name: str, content: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(Config(network="tiny").to_json())
    write_json(tmp_path / "run.json", {"classes": ["a"]})
    assert read_run(tmp_path) == (Config(network="tiny"), {"classes": ["a"]})
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=reason) as caught:
        read_run(tmp_path)
    assert str(caught.value.file) == str(tmp_path / name)
