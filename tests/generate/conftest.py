"""Settings of every test in this folder."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    # Tests run in parallel: threads of several processes would wait for one another most of the time.
    torch.set_num_threads(1)
