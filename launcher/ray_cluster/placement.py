"""A Ray cluster: how this process joins it, what it has room for, and places for the ranks of a trial."""

import contextlib
import os
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from launcher.core.errors import ConfigError
from launcher.ray_cluster import rank_on_node

STORE = 80 << 20  # bytes of Ray's shared memory in a cluster of our own, which carries nothing but short answers
ANSWER = 60.0  # seconds in which a node answers


@dataclass(frozen=True)
class Shape:
    """What a trial asks Ray for."""

    world: int  # processes
    cpus: int  # of each
    gpus: int  # of each: 0 or 1

    @property
    def bundle(self) -> dict[str, float]:
        """What each process takes."""
        return {"CPU": float(self.cpus)} | ({"GPU": float(self.gpus)} if self.gpus else {})

    def __str__(self) -> str:
        gpu = " and a GPU" if self.gpus else ""
        count = f"{self.world} process{'es' if self.world > 1 else ''}"
        return f"{count} with {self.cpus} CPU{'s' if self.cpus > 1 else ''}{gpu}{' each' if self.world > 1 else ''}"


class Slot:
    """A placement group: room for the ranks of one trial, near each other where that can be, as soon as Ray has it."""

    def __init__(self, shape: Shape) -> None:
        import ray
        from ray.util.placement_group import placement_group

        self.shape = shape
        self.group = placement_group([shape.bundle] * shape.world, strategy="PACK")
        self._rank_class: Any = ray.remote(rank_on_node.RankOnNode)

    @property
    def is_ready(self) -> bool:
        """Whether the room is there."""
        from ray.util.placement_group import placement_group_table

        return bool(placement_group_table(self.group)["state"] == "CREATED")  # group.ready() takes a process to tell it

    def start_actors(self) -> list[Any]:
        """An actor for each rank; each can be called while it runs a process."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        return [
            self._rank_class.options(
                num_cpus=self.shape.cpus,
                num_gpus=self.shape.gpus,
                max_restarts=0,
                max_concurrency=2,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=number),
            ).remote()
            for number in range(self.shape.world)
        ]

    def give_back(self) -> None:
        """Let others have the room; actors in it are ended."""
        from ray.util.placement_group import remove_placement_group

        remove_placement_group(self.group)


class Cluster:
    """The cluster that this process has joined.

    Args:
        address: auto, local, or host:port.

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
    """

    def __init__(self, address: str) -> None:
        try:
            import ray
        except ModuleNotFoundError as error:
            raise ConfigError(
                "hydra/launcher=ray: needs ray, which is not installed: "
                "pip install 'hydra-accelerate-launcher[ray]' on every node."
            ) from error
        if "://" in address:
            raise ConfigError(
                f"hydra.launcher.address={address}: must be auto, local, or host:port of the head of a cluster that "
                "this machine is a node of."
            )
        self.address = address
        if not ray.is_initialized():
            self._join()
        ray.cloudpickle.register_pickle_by_value(rank_on_node)

    def _join(self) -> None:
        import ray

        # What a cluster of our own would send is switched off; that of another belongs to who started it.
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "namespace": f"sweep-{uuid.uuid4()}"}
        try:
            if self.address == "local":
                ray.init("local", include_dashboard=False, object_store_memory=STORE, **quiet)
                return
            _check_listens(os.environ.get("RAY_ADDRESS", "") if self.address == "auto" else self.address)
            ray.init(self.address, **quiet)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            said = str(error).strip(". \n").splitlines() or [type(error).__name__]
            raise ConfigError(
                f"hydra.launcher.address={self.address}: this machine cannot join the Ray cluster ({said[0]}). Start "
                "its head by `ray start --head --disable-usage-stats` and each other node, this machine too, by "
                "`ray start --address=HOST:PORT`; or use hydra.launcher.address=local for this machine alone."
            ) from error

    @cached_property
    def nodes(self) -> list[dict[str, Any]]:
        """What Ray tells of each node that is there as the sweep starts."""
        import ray

        return [node for node in ray.nodes() if node["Alive"]]

    def __str__(self) -> str:
        counts = (len(self.nodes), "node"), (self.cpus, "CPU"), (self.gpus, "GPU")
        return ", ".join(f"{count} {what}{'' if count == 1 else 's'}" for count, what in counts)

    @property
    def cpus(self) -> int:
        """CPUs of all nodes."""
        return sum(int(_has(node).get("CPU", 0)) for node in self.nodes)

    @property
    def gpus(self) -> int:
        """GPUs of all nodes."""
        return sum(int(_has(node).get("GPU", 0)) for node in self.nodes)

    @property
    def cpus_per_gpu(self) -> int:
        """CPUs that each GPU of a node has for itself, on the node that has the fewest; at least 1."""
        shares = [int(_has(node).get("CPU", 0) / gpus) for node in self.nodes if (gpus := _has(node).get("GPU", 0))]
        return max(1, min(shares, default=1))

    def check_room(self, shape: Shape) -> None:
        """Refuse what would wait for ever; a ConfigError says what the cluster has."""
        most = sum(
            min(int(_has(node).get(kind, 0) / each) for kind, each in shape.bundle.items()) for node in self.nodes
        )
        if most < shape.world:
            raise ConfigError(
                f"hydra.launcher.devices_per_run, hydra.launcher.cpus_per_process: a trial needs {shape}, and the Ray "
                f"cluster has room for {most} of them ({self})."
            )

    def check_places(self, directory: Path, places: Sequence[str]) -> None:
        """Have every node look whether it sees a directory as this machine does, and some places.

        Raises:
            ConfigError: One does not.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = next(place for place in (directory, *directory.parents) if place.is_dir())
        look: Any = ray.remote(rank_on_node.missing_on_node)
        with _marked(there) as mark:
            asked = {}
            for node in self.nodes:
                on_it = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                answer = look.options(num_cpus=0, max_retries=0, scheduling_strategy=on_it).remote([mark, *places])
                asked[answer] = _name(node)
            for answer, name in asked.items():
                try:
                    missing = ray.get(answer, timeout=ANSWER)
                except ray.exceptions.RayError as error:
                    raise ConfigError(f"hydra/launcher=ray: node {name} of the Ray cluster does not answer.") from error
                if missing:
                    what = "hydra.sweep.dir" if missing[0] == mark else missing[0]
                    raise ConfigError(
                        f"hydra.sweep.dir={directory}: node {name} of the Ray cluster does not see {what}. The "
                        "directory of the sweep, the working directory and the code must lie on a file system that "
                        "all nodes share, under the same path."
                    )


def _check_listens(address: str) -> None:
    """An OSError at once where nobody listens at host:port, for which Ray itself would wait minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), 10).close()


@contextlib.contextmanager
def _marked(directory: Path) -> Iterator[str]:
    """A file in a directory, for as long as others look for it."""
    mark = directory / f".ray-{uuid.uuid4().hex}"
    mark.touch()
    try:
        yield str(mark)
    finally:
        mark.unlink(missing_ok=True)


def _has(node: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, float] = node["Resources"]
    return found


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
