"""What all tests share: shape checks at run time, and the files beside the checkout."""

from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook("multibox", "beartype.beartype")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data that lies beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the reference data (../shared) are not beside this checkout")
    return folder
