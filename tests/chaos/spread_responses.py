"""Responses of two teachers on a Ray cluster of several raylets on this host, while workers and whole nodes are killed.

    python tests/chaos/spread_responses.py --queries 1000000

For each teacher: what one process makes, then the same on the cluster, where a worker and later a raylet get a SIGKILL.
Rows must be equal but for their timings, none lost or doubled. The teacher costs nothing and is told
by its key, so this is about the store, the batches and the deaths; tests/deepdistill_assets/responses/test_spread.py
does the same with a model.
"""

import argparse
import hashlib
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ray_cluster import ray_cluster

from deepdistill_assets.recipe import load_recipe
from deepdistill_assets.responses.acceptance import Acceptance, Rule
from deepdistill_assets.responses.query_blocks import QueryBlocks
from deepdistill_assets.responses.waves import Distillation, Pair
from deepdistill_assets.tables import EXISTING_RESPONSE, QUERY, conform
from deepdistill_resources.compute import Demand, RayCompute
from deepdistill_resources.engines.base import GenerationResponse, GenerationSession
from deepdistill_resources.generation import VOLATILE
from deepdistill_resources.lake import Lake
from deepdistill_resources.spread_generation import SpreadGeneration, StorePlace

SLICE = 100_000


class Told(GenerationSession):
    """A teacher whose response is told by the request alone."""

    engine_name, engine_version = "told", "1"

    def generate(self, requests, sampling):
        for request in requests:
            text = f"<think>{hashlib.sha256(request.key.encode()).hexdigest()}</think><answer>{request.seed}</answer>"
            yield GenerationResponse(request.key, text, "ok", "stop", 40, 24, -3.5, 0.0)

    def perplexities(self, texts):
        return [None for _ in texts]


@dataclass
class House:
    """Queries, two teachers with one pass each, a lake."""

    root: str
    count: int
    chunk_size: int

    def __post_init__(self):
        recipe = load_recipe("deepdistill")
        names = list(recipe.teachers)[:2]
        teachers = {name: recipe.teachers[name].model_copy(update={"passes": 1}) for name in names}
        responses = recipe.responses.model_copy(update={"chunk_size": self.chunk_size})
        self.recipe = recipe.model_copy(update={"teachers": recipe.teachers | teachers, "responses": responses})
        self.teachers, self.source, self.lake = names, next(iter(recipe.sources)), Lake(root=self.root)
        ids = pl.Series("query_id", [f"{number:07d}" for number in range(self.count)])
        self.queries = conform(
            pl.DataFrame({"query_id": ids, "query_text": ids}).with_columns(
                source=pl.lit(self.source),
                category=pl.lit("math"),
                messages=pl.concat_list(pl.struct(role=pl.lit("user"), content="query_text")),
            ),
            QUERY,
        )

    def distil(self, teacher, directory, compute=None):
        """Return the hash of the rows and how many there are."""
        place = StorePlace(self.lake, directory, {"teacher": teacher})
        spread = compute and SpreadGeneration(compute, Told, Demand(cpus=1), place, self.chunk_size)
        never = Acceptance(lambda: None, lambda identity: None, Rule({}))
        pair, nothing = Pair(self.recipe, self.source, teacher, "r1"), pl.LazyFrame(schema=EXISTING_RESPONSE)
        log = partial(print, "  ", flush=True) if compute else lambda _: None
        outcome = Distillation(
            pair, QueryBlocks(self.queries.lazy()), nothing, Told(), place.open(), never, log, spread
        ).run()
        made = sum(report.generated for report in outcome.reports)
        return self.digest(outcome.rows.scan()), outcome.rows.rows, made

    def digest(self, rows):
        found = hashlib.sha256()
        for start in range(0, self.count, SLICE):
            part = rows.slice(start, SLICE).drop(VOLATILE).collect()
            found.update(part.hash_rows(seed=1).to_numpy().tobytes())
            assert part["query_id"].n_unique() == part.height
        return found.hexdigest()

    def committed(self, directory):
        return len([path for path in self.lake.list_files(directory) if "/manifest/" in path])


def kill_in_the_middle(house, cluster, directory, done):
    chunks = house.count // house.chunk_size
    for share, kill in ((0.2, cluster.kill_worker), (0.5, cluster.kill_node)):
        while house.committed(directory) < share * chunks or not kill():
            if done.wait(0.05):
                return
        print(f"   {kill.__name__} after {house.committed(directory):,} of {chunks:,} chunks", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser()
    for name, default in (("queries", 20_000), ("nodes", 3), ("chunk-size", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    sys.modules["spread_responses"] = sys.modules[__name__]
    Told.__module__ = "spread_responses"  # workers import it by that name
    failed = False
    with ray_cluster(options.nodes, Path(__file__).resolve().parent) as cluster:
        with tempfile.TemporaryDirectory() as root:
            house = House(root, options.queries, options.chunk_size)
            for teacher in house.teachers:
                cluster.fill()
                started, cpu = time.monotonic(), time.process_time()
                expected = house.distil(teacher, f"local/{teacher}")
                print(f"{teacher}: here {time.monotonic() - started:.0f} s, {time.process_time() - cpu:.0f} CPU s")
                done = threading.Event()
                killer = threading.Thread(target=kill_in_the_middle, args=(house, cluster, f"spread/{teacher}", done))
                killer.start()
                started, cpu = time.monotonic(), time.process_time()
                found = house.distil(teacher, f"spread/{teacher}", RayCompute(address=cluster.address))
                done.set()
                killer.join()
                print(
                    f"{teacher}: cluster {time.monotonic() - started:.0f} s, {time.process_time() - cpu:.0f} CPU s of "
                    f"the driver; {found[1]:,} rows, equal: {found[:2] == expected[:2]}; "
                    f"{psutil.Process().memory_info().rss >> 20} MB",
                    flush=True,
                )
                failed |= found[:2] != expected[:2] or found[1] != options.queries
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
