"""Exact and near duplicates of many queries, through the lake as the assets do it: time, memory and growth.

    python tests/benchmarks/benchmark_many_queries.py --sizes 100000 1000000 --directory /var/tmp/queries
    python tests/benchmarks/benchmark_many_queries.py --sizes 10000000 --directory /var/tmp/queries

The queries are made in sources of at most a million and stay in the directory for the next run (4 GB for ten million,
with their signatures and survivors). Each phase is a fresh process, so that its peak memory is its own: signatures of
every source, clusters across all sources, survivors of every source.
"""

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

PER_SOURCE, WARM = 1_000_000, 1000


def generate(directory: str, source: int, rows: int) -> int:
    """Write the queries of one source, unless they are there."""
    from generate_queries import queries

    from deepdistill_assets.tables import QUERY, conform
    from deepdistill_resources.lake import Lake

    lake, path = Lake(root=directory), f"queries/{rows}-{source}.parquet"
    if not lake.exists(path):
        table = pl.DataFrame({"query_text": queries(rows, seed=source)}, schema={"query_text": pl.String})
        ids = (pl.col("query_text") + pl.int_range(pl.len()).cast(pl.String)).hash(source)
        ids = pl.format("{}{}", ids.cast(pl.String).str.zfill(20), pl.int_range(pl.len()).cast(pl.String).str.zfill(12))
        frame = table.with_columns(query_id=ids, source=pl.lit(f"source-{source:02}"), category=pl.lit("other"))
        lake.write_table(path, conform(frame, QUERY))
    return rows


def signatures(directory: str, source: int, rows: int) -> int:
    """Write the signatures of one source."""
    from deepdistill_assets.queries.minhash import query_signatures
    from deepdistill_assets.recipe import Deduplication
    from deepdistill_assets.tables import QUERY_SIGNATURE
    from deepdistill_resources.lake import Lake
    from deepdistill_resources.stage_result import TableParts

    lake, signed = Lake(root=directory), TableParts(QUERY_SIGNATURE)
    for block in query_signatures(lake.scan_tables([f"queries/{rows}-{source}.parquet"]), 100, Deduplication()):
        signed.add(block)
    lake.write_table(f"signatures/{rows}-{source}.parquet", signed.scan())
    return signed.rows


def clusters(directory: str, sources: int, rows: int) -> int:
    """Write the clusters of all sources; returns the number of members."""
    from deepdistill_assets.queries.duplicates import duplicate_clusters
    from deepdistill_assets.recipe import Deduplication
    from deepdistill_assets.tables import QUERY_EMBEDDING, empty
    from deepdistill_resources.lake import Lake

    lake, names = Lake(root=directory), [f"{rows}-{source}.parquet" for source in range(sources)]
    signed, queries = (lake.scan_tables([f"{table}/{name}" for name in names]) for table in ("signatures", "queries"))
    found = duplicate_clusters(signed, queries, empty(QUERY_EMBEDDING).lazy(), Deduplication())
    lake.write_table("clusters.parquet", found)
    return found.height


def survivors(directory: str, source: int, rows: int) -> int:
    """Write the queries of one source that survive; returns how many."""
    from deepdistill_assets.queries.duplicates import without_duplicates
    from deepdistill_resources.lake import Lake

    lake, name = Lake(root=directory), f"{rows}-{source}.parquet"
    result = without_duplicates(lake.scan_tables([f"queries/{name}"]), lake.scan_tables(["clusters.parquet"]))
    lake.write_table(f"survivors/{name}", result.kept)
    return result.rows_kept


def measure(method: Callable, calls: list[tuple], connection) -> None:
    """Call a method in this process and send (CPU s, wall s, peak MB, sum of results)."""
    method(calls[0][0], 1 if method is clusters else 0, WARM)  # imports are done, compiled code is loaded
    cpu, wall = time.process_time(), time.perf_counter()
    total = sum(method(*arguments) for arguments in calls)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    connection.send((cpu, wall, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, total))


def measured(method: Callable, calls: list[tuple]) -> tuple[float, float, float, int]:
    """Measure a phase in a fresh process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(method, calls, sender))
    process.start()
    sender.close()
    result = receiver.recv()
    process.join()
    return result


def main() -> None:
    """Print one table per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000])
    parser.add_argument("--directory", required=True)
    arguments = parser.parse_args()
    for method in (generate, signatures, clusters):
        measured(method, [(arguments.directory, 1 if method is clusters else 0, WARM)])
    for size in arguments.sizes:
        rows = min(size, PER_SOURCE)
        each = [(arguments.directory, source, rows) for source in range(size // rows)]
        measured(generate, each)
        phases = {
            "signatures": measured(signatures, each),
            "clusters": measured(clusters, [(arguments.directory, len(each), rows)]),
            "survivors": measured(survivors, each),
        }
        print(f"\n{size:,} queries in {len(each)} sources")
        print(f"{'phase':12}{'CPU s':>9}{'us/query':>10}{'wall s':>9}{'RSS MB':>9}{'rows':>13}")
        for name, (cpu, wall, memory, total) in phases.items():
            print(f"{name:12}{cpu:9.2f}{cpu / size * 1e6:10.2f}{wall:9.1f}{memory:9.0f}{total:13,}")
        cpu, wall = (sum(phase[k] for phase in phases.values()) for k in (0, 1))
        peak = max(phase[2] for phase in phases.values())
        print(f"{'together':12}{cpu:9.2f}{cpu / size * 1e6:10.2f}{wall:9.1f}{peak:9.0f}", flush=True)


if __name__ == "__main__":
    main()
