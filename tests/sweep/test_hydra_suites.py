"""Hydra's own suites for launchers and sweepers, on ours for any Hydra application.

All of them pass. Those that differ little are left out unless HYDRA_SUITES=all is set: they take three minutes, most of
them for jobs of SLURM.
"""

import os

import pytest
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, IntegrationTestSuite, LauncherTestSuite
from hydra.version import VersionBase
from packaging.version import Version
from sweeps import own_tmp

# The suite runs another program with the same settings into the directory of the first.
ANEW = "hydra.launcher.resume=false"

FIVE = (
    "test_sweep_1_job",
    "test_sweep_2_jobs",
    "test_sweep_1_job_strict_and_bad_key",
    "test_sweep_and_override",
    "test_sweep_with_custom_resolver",
)


def part(suite, *kept):
    """Some tests of a suite, or all of them."""
    if os.environ.get("HYDRA_SUITES") == "all":
        return suite
    tests = {name for name in vars(suite) if name.startswith("test_")}
    assert set(kept) <= tests
    return type(suite.__name__, (suite,), dict.fromkeys(tests - set(kept)))


@pytest.fixture(autouse=True)
def own_devices(tmp_path, monkeypatch):
    """Programs that are started from here do not wait for devices of other sweeps on this machine."""
    monkeypatch.setenv("TMPDIR", own_tmp(tmp_path))


@pytest.fixture(autouse=True)
def behaviour_of_1_1():
    """The suites expect what Hydra does for programs without version_base; other tests in this process have set it."""
    version, before = VersionBase.instance(), VersionBase.instance().getbase()
    version.setbase(Version("1.1"))
    yield
    version.version_base = before


@pytest.fixture
def on_slurm(slurm, monkeypatch):
    """The commands of SLURM, and programs that are started from here, find the cluster of the tests."""
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("launcher_name, overrides", [("device_pool", [])])
class TestDevicePool(part(LauncherTestSuite, *FIVE)):
    pass


@pytest.mark.soak
@pytest.mark.parametrize("launcher_name, overrides", [("device_pool", ["hydra.sweeper.max_batch_size=2"])])
class TestDevicePoolInBatches(BatchedSweeperTestSuite):
    pass


@pytest.mark.parametrize(
    "launcher_name, overrides", [("basic", ["hydra/sweeper=lists", "hydra.sweeper.max_batch_size=2"])]
)
class TestListSweeper(BatchedSweeperTestSuite):
    pass


@pytest.mark.soak
@pytest.mark.usefixtures("on_slurm")
@pytest.mark.parametrize("launcher_name, overrides", [("slurm_array", ["hydra.launcher.wait=true"])])
class TestSlurmArray(part(LauncherTestSuite, "test_sweep_2_jobs", "test_sweep_with_custom_resolver")):
    pass


@pytest.mark.soak
@pytest.mark.usefixtures("on_slurm")
@pytest.mark.parametrize(
    "launcher_name, overrides", [("slurm_array", ["hydra.launcher.wait=true", "hydra.sweeper.max_batch_size=2"])]
)
class TestSlurmArrayInBatches(part(BatchedSweeperTestSuite)):
    pass


@pytest.mark.soak
@pytest.mark.usefixtures("on_slurm")
@pytest.mark.parametrize(
    "task_launcher_cfg, extra_flags", [({}, ["-m", "hydra/launcher=slurm_array", "hydra.launcher.wait=true", ANEW])]
)
class TestSlurmArrayWithPrograms(part(IntegrationTestSuite)):
    pass


@pytest.mark.soak
@pytest.mark.parametrize("task_launcher_cfg, extra_flags", [({}, ["-m", "hydra/launcher=device_pool", ANEW])])
class TestDevicePoolWithPrograms(
    part(IntegrationTestSuite, "test_get_orig_dir_multirun", "test_to_absolute_path_multirun")
):
    pass
