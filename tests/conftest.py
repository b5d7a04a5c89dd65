"""What all tests share: shape checks at run time, and the files beside the checkout."""

import pkgutil
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parents[1]

# All but the command line, where tyro's marker of a missing value stands in for paths.
CHECKED = [
    f"multibox.{module.name}"
    for module in pkgutil.iter_modules([str(ROOT / "src" / "multibox")])
    if module.name not in ("arguments", "cli", "__main__")
]
install_import_hook(CHECKED, "beartype.beartype")


# Of the processes that share the tests, none should begin with one of these when all others end.
LONG_FILES = (
    *("test_kills", "test_train", "test_workers", "test_ranks", "test_resume", "test_untouched"),
    *("test_fuzz", "test_signals", "test_foreign", "test_nonfinite", "test_writing"),
    *("test_docs", "test_reproduce", "test_pages_in_a_browser", "test_service", "test_page"),
)


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
