"""Candidates of duplicates, found on a real Ray cluster: the clusters are those of one process."""

import threading
import time

import numpy as np
import polars as pl
import pytest
from ray_cluster import ray_cluster

from deepdistill_assets.queries.candidates import WORK, CandidateSearch
from deepdistill_assets.queries.duplicates import duplicate_clusters
from deepdistill_assets.queries.minhash import query_signatures
from deepdistill_assets.recipe import Deduplication
from deepdistill_assets.tables import QUERY, QUERY_EMBEDDING, conform, empty
from deepdistill_resources.compute import RayCompute
from deepdistill_resources.lake import Lake

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
ROWS, SOURCES = 4000, ("one", "two")


def queries(source: str, seed: int) -> pl.DataFrame:
    """Queries of which half are the one before with another word."""
    words = np.random.default_rng(seed).integers(0, 3000, (ROWS, 20))
    words[1::2] = words[::2]
    words[1::2, seed] = 7
    texts = [" ".join("w" + chr(97 + word // 100) + chr(97 + word % 100) for word in row) for row in words]
    ids = [f"{source}{index}" for index in range(ROWS)]
    return conform(pl.DataFrame({"query_id": ids, "query_text": texts}).with_columns(source=pl.lit(source)), QUERY)


def test_clusters_are_those_of_one_process_and_a_dead_worker_changes_nothing(tmp_path):
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    lake, chosen, none = Lake(root=str(tmp_path)), Deduplication(), empty(QUERY_EMBEDDING).lazy()
    for seed, source in enumerate(SOURCES):
        lake.write_table(f"queries/{source}.parquet", queries(source, seed))
        texts = lake.scan_tables([f"queries/{source}.parquet"])
        lake.write_table(f"{source}.parquet", pl.concat(query_signatures(texts, 100, chosen)))
    signatures = lake.scan_tables([f"{source}.parquet" for source in SOURCES])
    texts = lake.scan_tables([f"queries/{source}.parquet" for source in SOURCES])
    expected = duplicate_clusters(signatures, texts, none, chosen)
    assert expected.height >= ROWS
    killed, ended = [], threading.Event()

    def kill(cluster):
        while not (ended.is_set() or cluster.kill_worker()):
            time.sleep(0.01)
        killed.append(not ended.is_set())

    with ray_cluster(nodes=2) as cluster:
        killer = threading.Thread(target=kill, args=(cluster,))
        killer.start()
        lines = []
        search = CandidateSearch(RayCompute(address=cluster.address, patience_seconds=300), lake, lines.append)
        found = duplicate_clusters(signatures, texts, none, chosen, search)
        ended.set()
        killer.join()
    assert killed == [True] and any("died" in line for line in lines)
    assert found.equals(expected)
    assert lake.list_files(WORK) == []
