"""What all tests share: shape checks at run time, and the files beside the checkout."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parents[1]

# The modules with annotated shapes. Each call of a checked function takes longer, so the others are
# not checked.
SOURCE = ROOT / "src"
CHECKED = [
    ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    for path in (SOURCE / "multibox").rglob("*.py")
    if "from jaxtyping import" in path.read_text(encoding="utf-8")
]
install_import_hook(CHECKED, "beartype.beartype")


# Of the processes that share the tests, none should begin with one of these when all others end.
LONG_FILES = (
    *("test_kills", "test_train", "test_workers", "test_ranks", "test_resume", "test_untouched"),
    *("test_fuzz", "test_signals", "test_foreign", "test_nonfinite", "test_writing"),
    *("test_docs", "test_reproduce", "test_pages_in_a_browser", "test_service", "test_page"),
)


def pytest_configure() -> None:
    """The tests wait for the disk thousands of times. In memory, if there is much, they do not."""
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > 8 << 30:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(memory))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first."""
    rank = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data that lies beside the checkout."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the reference data (../shared) are not beside this checkout")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """An installed Chromium, driven by Playwright."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    names = ("chromium", "chromium-browser", "chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("no Chromium is installed")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()
