"""Where agents keep what they do in tests."""

from pathlib import Path

import pytest

from yunque.apps.agents import (
    AgentRunner,
)
from yunque.workspace import Workspace


@pytest.fixture
def runner(tmp_path: Path) -> AgentRunner:
    return AgentRunner(Workspace.open(tmp_path / "ws"))
