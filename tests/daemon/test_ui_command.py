"""`deepdistill ui` opens webserver and daemon on loopback, and Ctrl-C ends both."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from daemon_site import free_port, stop, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
CLONE = Path(__file__).parents[2]
HEALTH = "{ instance { daemonHealth { allDaemonStatuses { daemonType healthy required } } } assetNodes { id } }"


def ask(port):
    body = json.dumps({"query": HEALTH}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/graphql", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)["data"]
    except OSError:
        return None


def test_it_opens_webserver_and_daemon_and_ctrl_c_ends_them(tmp_path):
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"},
        "PYTHONPATH": str(CLONE),
        "DEEPDISTILL_HOME": str(tmp_path),
        "DEEPDISTILL_RECIPE": str(CLONE / "tests" / "end_to_end" / "small.yaml"),
    }
    command = [sys.executable, "-m", "jobs.cli", "ui", "--port", str(port)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        seen = until(lambda: (said := ask(port)) and said["assetNodes"] and said, what="the webserver")
        assert seen["instance"]

        def healthy():
            statuses = ask(port)["instance"]["daemonHealth"]["allDaemonStatuses"]
            return all(status["healthy"] for status in statuses if status["required"])

        until(healthy, every=2, what="the daemon")
        process.send_signal(signal.SIGINT)
        process.wait(120)
        until(lambda: ask(port) is None, 120, what="the end of the webserver")
    finally:
        stop(process)
    assert f"http://127.0.0.1:{port}" in (tmp_path / "log").read_text()
