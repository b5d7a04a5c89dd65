from pathlib import Path

import pytest

from multibox.errors import StorageError
from multibox.training.metrics_log import MetricsLog


def cut(folder: Path, length: int) -> None:
    with MetricsLog(folder, 0, silent=False) as logbook:
        logbook.write("train", 1, loss=1.0)
        logbook.cut(length)


def test_a_journal_that_somebody_altered_is_refused_in_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no line ends"):
        cut(tmp_path, 10)
