"""Documents of every format, made when a test asks for them."""

from pathlib import Path

import pytest


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """A folder for the files of a test."""
    folder = tmp_path / "documents"
    folder.mkdir()
    return folder
