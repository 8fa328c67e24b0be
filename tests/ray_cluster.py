"""A real Ray cluster of several raylets on this host, whose nodes and workers can be killed."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

PROJECT = Path(__file__).parents[1]
PATIENT = {  # a busy machine is slow, not dead
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_gcs_server_request_timeout_seconds": "300",
    "RAY_gcs_rpc_server_connect_timeout_s": "60",
    "RAY_health_check_failure_threshold": "10",
}
SECONDS_TO_SEE_A_DEATH = 240.0
os.environ |= PATIENT  # Ray reads some of it when it is imported


class RayCluster:
    """A head without CPUs, and nodes of one CPU each with an object store of their own; only the head is spared."""

    def __init__(self, nodes: int, path: str) -> None:
        from ray.cluster_utils import Cluster

        self._size, self._path = nodes, path
        self._cluster = Cluster()
        self._add(num_cpus=0)
        self.nodes = []
        self.fill()

    @property
    def address(self) -> str:
        return self._cluster.address

    def fill(self) -> None:
        """Replace what was killed, once the head has seen that it is gone."""
        deadline = time.monotonic() + SECONDS_TO_SEE_A_DEATH
        while len(self._cluster.list_all_nodes()) < self._alive() and time.monotonic() < deadline:
            time.sleep(0.5)
        path, os.environ["PYTHONPATH"] = os.environ.get("PYTHONPATH", ""), self._path
        while len(self.nodes) < self._size:
            self.nodes.append(self._add(num_cpus=1))
        os.environ["PYTHONPATH"] = path

    def _alive(self) -> int:
        """Return how many nodes the head takes for alive."""
        import ray

        return sum(node["Alive"] for node in ray.nodes()) if ray.is_initialized() else 0

    def _add(self, num_cpus: int) -> Any:
        for attempt in range(4):
            try:
                return self._cluster.add_node(num_cpus=num_cpus, object_store_memory=80_000_000)
            except Exception:  # Ray gives a raylet 30 s to start, and no way to give it more
                if attempt == 3:
                    raise
        return None

    def kill_node(self) -> bool:
        """SIGKILL a raylet; its workers end with it."""
        node = self.nodes.pop()
        raylet = node.all_processes["raylet"][0].process
        raylet.kill()
        raylet.wait()  # its workers live as long as it is a zombie
        self._cluster.worker_nodes.discard(node)
        return True

    def kill_worker(self) -> bool:
        """SIGKILL a worker that is at work; returns whether there was one."""
        for node in self.nodes:
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            for child in raylet.children():
                if child.cmdline()[:1] and child.cmdline()[0].startswith("ray::_Host"):
                    os.kill(child.pid, signal.SIGKILL)
                    return True
        return False

    def shutdown(self) -> None:
        """End it, and this process's connection to it."""
        import ray

        ray.shutdown()
        self._cluster.shutdown()


@contextmanager
def ray_cluster(nodes: int, importable: Path | None = None) -> Iterator[RayCluster]:
    """Yield a cluster on whose nodes the project, and the modules in `importable`, are as good as installed."""
    cluster = RayCluster(nodes, os.pathsep.join(str(place) for place in (PROJECT, importable) if place))
    try:
        yield cluster
    finally:
        cluster.shutdown()
