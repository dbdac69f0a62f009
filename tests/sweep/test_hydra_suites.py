"""Hydra's own suites for launchers and sweepers, on ours for any Hydra application."""

import pytest
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, IntegrationTestSuite, LauncherTestSuite

# The suite runs another program with the same settings into the directory of the first.
ANEW = "hydra.launcher.resume=false"


@pytest.mark.parametrize("launcher_name, overrides", [("device_pool", [])])
class TestDevicePool(LauncherTestSuite):
    pass


@pytest.mark.soak
@pytest.mark.parametrize("launcher_name, overrides", [("device_pool", ["hydra.sweeper.max_batch_size=2"])])
class TestDevicePoolInBatches(BatchedSweeperTestSuite):
    pass


@pytest.mark.soak
@pytest.mark.parametrize("task_launcher_cfg, extra_flags", [({}, ["-m", "hydra/launcher=device_pool", ANEW])])
class TestDevicePoolWithPrograms(IntegrationTestSuite):
    pass
