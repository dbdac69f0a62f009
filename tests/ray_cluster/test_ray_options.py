import sys
from types import SimpleNamespace

import pytest
import yaml
from processes import REPOSITORY

from launcher.core.errors import ConfigError
from launcher.ray_cluster.placement import Cluster, Shape
from launcher.ray_cluster.ray_options import RayOptions

TEXT = yaml.safe_load((REPOSITORY / "conf/hydra/launcher/ray.yaml").read_text())
PLAIN = {key: value for key, value in TEXT.items() if key != "_target_"}


def cluster_of(*nodes):
    """A cluster that nobody has started: nodes by their resources."""
    cluster = object.__new__(Cluster)
    cluster.nodes = [{"Resources": node} for node in nodes]
    return cluster


def options(cluster, **given):
    made = RayOptions(**PLAIN | given)
    made.cluster = cluster
    return made


def settings(**given):
    return SimpleNamespace(**{"device": "auto", "mixed_precision": "no", "threads": "auto"} | given)


def test_the_defaults_fit():
    RayOptions(**PLAIN).check()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("address", None, "a text"),
        ("devices_per_run", 0, "at least 1, or auto"),
        ("cpus_per_process", "many", "or auto"),
        ("max_parallel", 0, "or null"),
        ("max_time_per_run", "soon", "90m"),
        ("snapshot", 1, "true or false"),
    ],
)
def test_a_wrong_setting_is_named(name, value, said):
    shown = "null" if value is None else value
    with pytest.raises(ConfigError, match=rf"hydra\.launcher\.{name}={shown}: .*{said}"):
        RayOptions(**PLAIN | {name: value}).check()


def test_the_extra_is_named_where_ray_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"hydra/launcher=ray: needs ray.*hydra-accelerate-launcher\[ray\]"):
        Cluster("auto")


def test_a_trial_is_where_its_device_is(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    mixed = cluster_of({"CPU": 16.0}, {"CPU": 12.0, "GPU": 4.0, "memory": 1e9}, {"CPU": 16.0, "GPU": 8.0})
    assert options(mixed).place(settings()) == ("gpu", 2)  # 16 CPUs for 8 GPUs is the smaller share
    assert options(mixed).place(settings(threads=5)) == ("gpu", 5)
    assert options(mixed).place(settings(device="cpu")) == ("cpu", 1)
    assert options(mixed, cpus_per_process=3).place(settings()) == ("gpu", 3)
    assert options(cluster_of({"CPU": 4.0})).place(settings(threads=2)) == ("cpu", 2)
    with pytest.raises(ConfigError, match="mixed_precision=fp16"):
        options(cluster_of({"CPU": 4.0})).place(settings(mixed_precision="fp16"))


def test_what_no_node_has_room_for_is_refused():
    trial = SimpleNamespace(world=3, kind="cpu", threads=2)
    assert options(cluster_of({"CPU": 3.0}, {"CPU": 4.0})).shape(trial) == Shape(3, 2, 0)  # one here, two there
    with pytest.raises(ConfigError, match=r"3 processes with 2 CPUs each.*room for 2 .*2 nodes, 6 CPUs, 0 GPUs"):
        options(cluster_of({"CPU": 3.0}, {"CPU": 3.0})).shape(trial)
    on_gpus = SimpleNamespace(world=2, kind="gpu", threads=2)
    with pytest.raises(ConfigError, match=r"2 processes with 8 CPUs and a GPU each.*room for 1 .*72 CPUs, 1 GPU\)"):
        options(cluster_of({"CPU": 64.0}, {"CPU": 8.0, "GPU": 1.0})).shape(on_gpus)
