"""What all tests share: shape checks at run time, and the files beside the checkout."""

import pkgutil
from pathlib import Path

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
