"""The Ray cluster of docker/compose.yaml without Docker: its own commands, as processes on loopback."""

import os
import secrets
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

SERVICES = yaml.safe_load((Path(__file__).parents[2] / "docker" / "compose.yaml").read_text())["services"]
PROGRAM = """
import sys
import ray
ray.init(address=sys.argv[1], log_to_driver=False)
node = ray.remote(num_cpus=1)(lambda: ray.get_runtime_context().get_node_id())
cpus = {item["NodeID"]: item["Resources"].get("CPU", 0) for item in ray.nodes() if item["Alive"]}
assert cpus[ray.get(node.remote())] == 1 and cpus[ray.get_runtime_context().get_node_id()] == 0, cpus
print("CPUs", sorted(cpus.values()))
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
pytest.importorskip("ray", reason="the extra `ray` is not installed")


class Services:
    """What the services of compose.yaml start, with ports and small sizes of this machine."""

    def __init__(self, directory):
        self.program = Path(directory) / "program.py"
        self.program.write_text(PROGRAM)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        said = {**SERVICES["ray-head"]["environment"], "RAY_TMPDIR": directory, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        said = {name: value for name, value in said.items() if name.startswith("RAY_")}
        self.environment = {**os.environ, **said, "PATH": path}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.environment["DEEPDISTILL_RAY_ADDRESS"] = self.here("ray-head:6379")
        self.started = []

    def here(self, text):
        small = " --object-store-memory=80000000 --include-dashboard=false --node-ip-address=127.0.0.1"
        for old, new in {
            "ray-head:6379": f"127.0.0.1:{self.port}",
            "--port=6379": f"--port={self.port}",
            "--dashboard-host=0.0.0.0 ": "",
            "--head": f"--head{small}",
            "--block": "--block" + ("" if "--head" in text else " --num-cpus=1 --object-store-memory=80000000"),
            "--num-cpus=0;": "--num-cpus=0 --object-store-memory=80000000;",
            "$$": "$",
            "dagster code-server start -h 0.0.0.0 -p 4000 -m jobs.definitions": (
                f"{sys.executable} {self.program} $DEEPDISTILL_RAY_ADDRESS"
            ),
        }.items():
            text = text.replace(old, new)
        return text

    def start(self, service):
        words = shlex.split(self.here(SERVICES[service]["command"]))
        process = subprocess.Popen(
            words,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def wait_until_healthy(self, service):
        words = [self.here(word) for word in SERVICES[service]["healthcheck"]["test"][1:]]
        deadline = time.monotonic() + 120
        while subprocess.run(words, env=self.environment, capture_output=True).returncode:
            assert time.monotonic() < deadline, f"{service} is not healthy"
            time.sleep(1)

    def stop(self):
        """End what was started, the raylet that the code server leaves in the background included."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("RAY_TMPDIR") == self.environment["RAY_TMPDIR"]:
                    process.kill()
        for process in self.started:
            process.wait(30)


def test_head_worker_and_code_server_become_one_cluster():
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as directory:
        services = Services(directory)
        try:
            services.start("ray-head")
            services.wait_until_healthy("ray-head")
            services.start("ray-worker")
            time.sleep(10)
            code = services.start("code")
            output, _ = code.communicate(timeout=300)
            assert "CPUs [0, 0, 1.0]" in output, output
            services.environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
            refused, _ = services.start("code").communicate(timeout=300)
            assert "CPUs" not in refused and "uthentication token" in refused, refused
        finally:
            services.stop()
