import json
import os

import pytest

from launcher.core.errors import ConfigError
from launcher.sweep.sweep import LOCK, check_count, lock


def test_a_large_sweep_needs_consent():
    check_count(4, 4)
    with pytest.raises(ConfigError, match=r"5 trials, more than hydra\.launcher\.max_points=4"):
        check_count(5, 4)
    with pytest.raises(ConfigError, match="no trial"):
        check_count(0, 4)


def test_one_start_at_a_time_is_in_the_directory(tmp_path):
    handle = lock(tmp_path)
    with pytest.raises(ConfigError, match=f"a sweep runs in it .*{os.getpid()}"):
        lock(tmp_path)
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    os.close(handle)
    os.close(lock(tmp_path))
