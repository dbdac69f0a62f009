import json
import os

import pytest

from launcher.core.errors import ConfigError
from launcher.sweep.sweep_directory import LOCK, lock


def test_one_start_at_a_time_is_in_the_directory(tmp_path):
    handle = lock(tmp_path)
    with pytest.raises(ConfigError, match=f"a sweep runs in it .*{os.getpid()}"):
        lock(tmp_path)
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    os.close(handle)
    os.close(lock(tmp_path))
