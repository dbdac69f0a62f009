import pytest

from launcher.core.errors import ConfigError
from launcher.sweep.sweep import check_count


def test_a_large_sweep_needs_consent():
    check_count(4, 4)
    with pytest.raises(ConfigError, match=r"5 trials, more than hydra\.launcher\.max_points=4"):
        check_count(5, 4)
    with pytest.raises(ConfigError, match="no trial"):
        check_count(0, 4)
