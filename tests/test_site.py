"""The documentation site builds without warnings, has no dead links, and asks nothing of others."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from chromium import MARKS

ROOT = Path(__file__).parents[1]
ZENSICAL = Path(sys.executable).with_name("zensical")
pytestmark = [
    pytest.mark.skipif(not ZENSICAL.exists(), reason="Zensical is not installed (the extra docs)"),
    *MARKS,
]


class _Page(HTMLParser):
    """Collects what a page refers to.

    Attributes:
        anchors: The ids of its elements.
        links: Addresses that a reader can follow.
        loaded: Addresses that a browser loads by itself.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag != "form":
            self.loaded += [values[name] for name in ("src", "href", "data") if name in values]
            self.loaded += re.findall(r"url\(([^)]*)\)", values.get("style", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", folder / "docs")
    (folder / "src").symlink_to(ROOT / "src")
    shutil.copy(ROOT / "zensical.toml", folder)
    result = subprocess.run(
        [ZENSICAL, "build", "--strict"],
        cwd=folder,
        env=os.environ | {"NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "warning" not in (result.stdout + result.stderr).lower()
    return folder / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, _Page]:
    # The page of an address that does not exist may be shown anywhere, so its links start at /.
    return {path: _Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_page_is_in_the_navigation(site: Path) -> None:
    text = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    listed = re.findall(r'= "([\w/-]+\.md)"', text.partition("[project.theme]")[0])
    written = [str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted(written)
    assert all((site / name).with_suffix(".html").exists() for name in listed)
    assert tomllib.loads(text)["project"]["theme"]["font"] is False


def test_links_lead_somewhere(site: Path, pages: dict[Path, _Page]) -> None:
    checked = 0
    for path, page in pages.items():
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_relative_to(site.resolve()), f"{path.name}: {link}"
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), f"{path.name}: {link}"
            found = pages.get(site / target.relative_to(site.resolve()))
            if parts.fragment and found:
                assert unquote(parts.fragment) in found.anchors, f"{path.name}: {link}"
            checked += 1
    assert checked > 500


def test_the_api_is_described(site: Path) -> None:
    text = (site / "api.html").read_text(encoding="utf-8")
    for name in ("Detector.open", "DetectionList.to_supervision", "config.Config", "DataError"):
        assert f"{name}" in text
    assert "recipes.ssd300_lite" in text


def test_pages_load_nothing_from_elsewhere(site: Path, pages: dict[Path, _Page]) -> None:
    for path, page in pages.items():
        outside = [link for link in page.loaded if re.match(r"(https?:)?//", link)]
        assert outside == [], path.name
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", text), path.name


def test_pages_fit_and_ask_nothing(site: Path, browser: Any) -> None:
    """On a phone nothing but tables and code scrolls sideways, and nothing is requested."""
    asked: list[str] = []
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.on("request", lambda request: asked.append(request.url))
    for name in ("index", "weights", "api", "commands"):
        page.goto((site / f"{name}.html").as_uri())
        widths = "[document.documentElement.scrollWidth, window.innerWidth]"
        scrolled, shown = page.evaluate(widths)
        assert scrolled <= shown, name
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
