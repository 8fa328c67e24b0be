"""Backfills on S3 while processes die, by seeded schedules; in the end the tables are those of an undisturbed run.

By hand, 20 schedules: python tests/daemon/chaos.py 20. Each kills, at random moments, a run's process, the daemon with
its code server and all runs, the proxy before the S3 server, or the model server. What is still missing when a backfill
ends is asked for again, as a person would from the UI.
"""

import os
import random
import re
import signal
import socket
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import dagster as dg
from daemon_house import house
from daemon_site import QUICK, UNFINISHED, Site, free_port, until
from dagster._core.execution.backfill import PartitionBackfill

from jobs.runner import cause_of

SMALL = ("queries", "responses", "dataset")
EVERYTHING = (*SMALL, "checkpoints", "benchmark_responses", "scoreboard")
FAULTS = ("worker", "daemon", "proxy", "model")
MODEL_SERVER = Path(__file__).parents[1] / "deepdistill_resources" / "engines" / "faulty_server.py"
MOST_BACKFILLS = 6
VARIABLES = {
    "AWS_ENDPOINT_URL": "",
    "AWS_ACCESS_KEY_ID": "chaos",
    "AWS_SECRET_ACCESS_KEY": "chaos",
    "AWS_REGION": "us-east-1",
    "HOUSE_LAKE": "s3://chaos/lake",
    "HOUSE_SOURCES": "",
    "HOUSE_MODEL_SERVER": "",
}


class World:
    """An S3 server, a proxy before it, a model server and a daemon: processes that can be killed and started again."""

    def __init__(self, home, assets, sources, stack):
        self.assets, self.stack, self.running = [dg.AssetKey(name) for name in assets], stack, {}
        self.s3, self.port, self.model = free_port(), free_port(), free_port()
        self.site = Site(home, replace=QUICK)
        variables = VARIABLES | {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "HOUSE_SOURCES": sources,
            "HOUSE_MODEL_SERVER": f"http://127.0.0.1:{self.model}",
        }
        os.environ.update(variables)
        self.site.environment |= variables
        self.start("s3", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.s3))
        self.start("proxy", str(Path(__file__).parent / "tcp_proxy.py"), str(self.port), str(self.s3))
        self.start("model", str(MODEL_SERVER), str(self.model), "1")
        for port in (self.s3, self.port, self.model):
            until(lambda port=port: socket.socket().connect_ex(("127.0.0.1", port)) == 0, what="a server")
        self.client().create_bucket(Bucket="chaos")
        self.instance = stack.enter_context(self.site.instance())
        self.definitions = house(home, VARIABLES["HOUSE_LAKE"])
        (home / "slow").touch()

    def client(self):
        import boto3

        return boto3.client("s3", endpoint_url=f"http://127.0.0.1:{self.s3}", region_name="us-east-1")

    def start(self, name, *command):
        self.running[name] = (self.stack.enter_context(self.site.process(name, *command)), command)

    def start_daemon(self):
        self.start("daemon", str(Path(__file__).parent / "quick_daemon.py"), "run", *self.site.workspace)

    def kill(self, fault):
        if fault == "worker":
            return self.kill_worker()
        process, command = self.running[fault]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(3 if fault == "model" else 1)
        self.start(fault, *command)
        return f"{fault} {process.pid}"

    def kill_worker(self):
        worker = until(self.worker, what="a run's process")
        os.kill(worker, signal.SIGKILL)
        return f"worker {worker}"

    def worker(self):
        """The process of a run that has begun its steps, or None."""
        for run in self.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
            for event in self.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
                pid = re.search(r"in process \(pid: (\d+)\)", event.message or "")
                if pid and Path(f"/proc/{pid[1]}/cmdline").exists() and Path(f"/proc/{pid[1]}/cmdline").read_bytes():
                    return int(pid[1])
        return None

    def causes(self):
        """Why runs failed, in one line each."""
        return [
            f"{', '.join(key.to_user_string() for key in run.asset_selection)}: {self.cause(run)}"
            for run in self.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
        ]

    def cause(self, run):
        for event in self.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
            return cause_of(event.dagster_event.step_failure_data)
        return "its process was lost"

    def missing(self):
        graph = self.definitions.resolve_asset_graph()
        return [
            key
            for key in self.assets
            if (
                set(graph.get(key).partitions_def.get_partition_keys()) - self.instance.get_materialized_partitions(key)
                if graph.get(key).is_partitioned
                else not self.instance.get_latest_materialization_event(key)
            )
        ]

    def backfill(self, number, keys):
        self.instance.add_backfill(
            PartitionBackfill.from_asset_partitions(
                backfill_id=f"chaos-{number}",
                asset_graph=self.definitions.resolve_asset_graph(),
                partition_names=None,
                asset_selection=keys,
                backfill_timestamp=time.time(),
                tags={},
                dynamic_partitions_store=self.instance,
                all_partitions=True,
                title=None,
                description=None,
                run_config=None,
            )
        )
        return lambda: self.instance.get_backfill(f"chaos-{number}").status.value.startswith(("COMPLETED", "FAILED"))


def play(home, seed, assets=EVERYTHING, sources="a,b", faults=4):
    """Play one schedule; returns what happened. Raises AssertionError when the end is not the undisturbed one."""
    dice, told = random.Random(seed), []
    with ExitStack() as stack:
        world = World(home, assets, sources, stack)
        world.start_daemon()
        plan = [*dice.sample(FAULTS, len(FAULTS)), *dice.choices(FAULTS, k=faults)][:faults]
        finished = world.backfill(0, world.assets)
        until(
            lambda: world.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])), what="a first run"
        )
        for fault in plan:
            time.sleep(dice.uniform(0.5, 4.0))
            told.append(world.kill(fault))
        (home / "slow").unlink()
        for number in range(1, MOST_BACKFILLS):
            until(finished, 600, what="the end of a backfill")
            if not (missing := world.missing()):
                break
            told.append(f"again: {', '.join(key.to_user_string() for key in missing)}, for {world.causes()}")
            finished = world.backfill(number, missing)
        until(lambda: not world.instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)), what="the end of all runs")
        assert not world.missing(), told
        store = world.instance.event_log_storage
        until(lambda: store.get_concurrency_info("gpu").active_slot_count == 0, what="free slots")
        assert tables(world, assets) == undisturbed(world, assets), told
    return told


def tables(world, assets):
    lake = world.definitions.resources["lake"]
    found = {}
    for name in assets:
        for path in lake.list_files(name):
            if path.endswith("data.parquet"):
                found[path] = rows(lake, path)
    return found


def rows(lake, path):
    return sorted(lake.read_table(path).select("key", "text").rows())


def undisturbed(world, assets):
    """The same assets in this process, with nobody killed."""
    from tiny_house import Tally

    from jobs.runner import run

    with tempfile.TemporaryDirectory() as home:
        definitions = house(home)
        with dg.DagsterInstance.ephemeral() as instance:
            run(
                definitions, instance, Tally(), definitions.resources["lake"], " or ".join(f'key:"{a}"' for a in assets)
            )
        lake = definitions.resources["lake"]
        return {
            path: rows(lake, path) for name in assets for path in lake.list_files(name) if path.endswith("data.parquet")
        }


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "jobs"))
    for seed in range(int(sys.argv[1]) if len(sys.argv) > 1 else 20):
        with tempfile.TemporaryDirectory() as directory:
            begin = time.monotonic()
            print(seed, play(Path(directory) / "home", seed), f"{time.monotonic() - begin:.0f} s", flush=True)
