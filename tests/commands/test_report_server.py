"""`report --serve` and `--live`: one page, for this machine only, renewed while a run trains."""

import http.client
import json
from pathlib import Path

import pytest
import synthetic_runs

from multibox.cli import main as command_line
from multibox.commands import report
from multibox.commands.report_server import serving
from multibox.errors import ConfigError


def ask(address: str, path: str = "/", host: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address, timeout=10)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


def test_only_the_page_is_served(tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    page.write_text("first")
    (tmp_path / "secret.txt").write_text("secret")
    with serving(page, 0) as address:
        assert address.startswith("127.0.0.1:")
        assert ask(address) == (200, b"first")
        page.write_text("second")
        assert ask(address) == (200, b"second")
        for path in ("/secret.txt", "/../secret.txt", "/index.html", "/?x"):
            status, content = ask(address, path)
            assert status == 404
            assert b"secret" not in content
        assert ask(address, host="example.org:80")[0] == 403
        assert ask(address, host="localhost:80")[0] == 200
        page.unlink()
        assert ask(address)[0] == 503


def test_taken_port_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path / "index.html", 0) as address:
        port = int(address.rpartition(":")[2])
        with (
            pytest.raises(ConfigError, match=f"port {port} cannot be used"),
            serving(tmp_path, port),
        ):
            pass
    with pytest.raises(ConfigError), serving(tmp_path, 70_000):
        pass


def test_live_page_is_renewed_until_the_run_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "png", lambda _: b"a chart")
    run = synthetic_runs.write_run(tmp_path / "run", synthetic_runs.STOPPED)
    seen: list[bool] = []

    def sleep(seconds: int) -> None:
        assert seconds == 5
        page = (run / "report" / "index.html").read_text(encoding="utf-8")
        seen.append('http-equiv="refresh" content="5"' in page)
        if len(seen) == 2:
            with (run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"kind": "train", "step": 20_000, "loss": 1.0}) + "\n")

    monkeypatch.setattr(report.time, "sleep", sleep)
    assert command_line.main(["report", str(run), "--live", "--every", "5"]) == 0
    assert seen == [True, True]
    page = (run / "report" / "index.html").read_text(encoding="utf-8")
    assert 'http-equiv="refresh"' not in page


def test_report_needs_a_run() -> None:
    assert command_line.main(["report"]) == 2
