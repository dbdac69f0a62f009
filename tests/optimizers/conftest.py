import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Two threads on work this small only wait for each other: 30 s instead of 3 on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
