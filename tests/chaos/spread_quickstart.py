"""A whole recipe on a Ray cluster of several raylets on this host, while a worker and a node are killed.

    python tests/chaos/spread_quickstart.py --directory /var/tmp/spread
    python tests/chaos/spread_quickstart.py --directory /var/tmp/spread --recipe quickstart --lake LAKE

First the recipe with the profile `embedded` (or a lake that such a run left behind), then with the profile `ray`, where
a worker gets a SIGKILL when the first responses are committed, and a raylet when the first verdicts are. Then the
tables are compared: those of the queries must be equal, responses and verdicts must be of the same keys, each once.
The rest is reported: floats of batches of another shape round differently.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ray_cluster import PATIENT, PROJECT, ray_cluster

from deepdistill_assets.recipe import load_recipe

SMALL = PROJECT / "tests/end_to_end/small.yaml"
VOLATILE = ["started_at", "seconds", "evidence"]
EQUAL = (
    *("raw_queries", "clean_queries", "query_labels", "query_signatures", "duplicate_clusters", "deduped_queries"),
    *("contamination", "distillation_queries", "benchmark_problems"),
)
KEYED = {"responses": "response_id", "verified_responses": "response_id", "quality_checks": "response_id"}
MOMENTS = ("responses", "verdicts")  # whose first chunk a kill waits for


def start(recipe, home, **variables):
    """Start a run of the recipe."""
    home.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **PATIENT, "PYTHONPATH": str(PROJECT), "DEEPDISTILL_HOME": str(home), **variables}
    models = os.environ.get("DEEPDISTILL_MODELS", str(PROJECT / ".deepdistill" / "models"))
    environment |= {"DEEPDISTILL_MODELS": models, "DAGSTER_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-m", "jobs.cli", "run", "--recipe", recipe]
    with (home / "run.log").open("w") as log:
        return subprocess.Popen(command, env=environment, cwd=PROJECT, stdout=log, stderr=log)


def kill_in_the_middle(cluster, lake, running):
    """Kill a worker and a node, each as soon as its moment has come; returns what was done."""
    killed = []
    for moment, kill in zip(MOMENTS, (cluster.kill_worker, cluster.kill_node), strict=True):
        while not any((lake / "_chunks" / moment).rglob("manifest/*")) or not kill():
            if running.poll() is not None:
                return killed
            time.sleep(0.05)
        killed.append(f"{kill.__name__} in {moment}")
        print(f"  {killed[-1]}", flush=True)
        cluster.fill()
    return killed


def table(lake, asset):
    frames = [pl.read_parquet(file) for file in sorted((lake / asset).rglob("data.parquet"))]
    return pl.concat(frames).drop(VOLATILE, strict=False)


def difference(asset, expected, found):
    """Return what differs in a table, and whether that is wrong."""
    if expected.equals(found):
        return "equal", False
    if asset in EQUAL or expected.height != found.height:
        return f"differs: {expected.height} rows, {found.height} on the cluster", asset in EQUAL
    names = [name for name in expected.columns if not expected[name].equals(found[name])]
    key = KEYED.get(asset)
    wrong = key is not None and (key in names or found[key].n_unique() != found.height)
    rows = (expected[names].hash_rows() != found[names].hash_rows()).sum()
    return f"{rows} of {found.height} rows differ in {', '.join(names)}", wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=str(SMALL))
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--lake", type=Path, help="of a run with the profile embedded")
    parser.add_argument("--nodes", type=int, default=2)
    options = parser.parse_args()
    name = load_recipe(options.recipe).name
    local, spread = (options.directory.absolute() / kind for kind in ("local", "spread"))
    if options.lake is None:
        assert start(options.recipe, local, DEEPDISTILL_PROFILE="embedded").wait() == 0, f"see {local}/run.log"
    expected, found = options.lake or local / name / "lake", spread / name / "lake"
    with ray_cluster(options.nodes) as cluster:
        variables = {"DEEPDISTILL_PROFILE": "ray", "DEEPDISTILL_RAY_ADDRESS": cluster.address}
        with start(options.recipe, spread, **variables) as running:
            killed = kill_in_the_middle(cluster, found, running)
        assert running.returncode == 0, f"see {spread}/run.log"
    failed = len(killed) < len(MOMENTS)
    for asset in sorted(path.name for path in expected.iterdir() if not path.name.startswith("_")):
        if any((expected / asset).rglob("data.parquet")):
            said, wrong = difference(asset, table(expected, asset), table(found, asset))
            print(f"{asset:24}{'WRONG: ' if wrong else ''}{said}")
            failed |= wrong
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
