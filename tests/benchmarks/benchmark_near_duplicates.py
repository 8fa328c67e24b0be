"""Near-duplicate removal end to end, side by side with datasketch (and rensa where installed), in one run.

    python tests/benchmarks/benchmark_near_duplicates.py --sizes 20000 100000 --repeats 3

Every measurement is a fresh process that gets the same raw texts (read before the clock starts) and gives back who
survives. The columns: CPU seconds (user and system, all threads), seconds on the wall, peak memory of the process,
queries kept, and how many times more CPU than ours.
"""

import argparse
import importlib.util
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

THRESHOLD, PERMUTATIONS, WORDS = 0.8, 128, 3


def ours(texts: list[str], queries: pl.DataFrame) -> int:
    """Signatures, clusters verified by exact Jaccard, survivors."""
    from deepdistill_assets.queries.duplicates import duplicate_clusters, without_duplicates
    from deepdistill_assets.queries.minhash import query_signatures
    from deepdistill_assets.recipe import Deduplication
    from deepdistill_assets.tables import QUERY_EMBEDDING, empty

    signatures = query_signatures(queries, 100, Deduplication())
    clusters = duplicate_clusters(signatures.lazy(), empty(QUERY_EMBEDDING).lazy(), Deduplication())
    return without_duplicates(queries, clusters.lazy()).kept.height


def shingle_sets(texts: list[str]) -> list[set[bytes]]:
    """Sets of word 3-grams, as both peers want them."""
    sets = []
    for text in texts:
        words = text.lower().split()
        sets.append({" ".join(words[i : i + WORDS]).encode() for i in range(max(1, len(words) - WORDS + 1))})
    return sets


def datasketch_default(texts: list[str], queries: pl.DataFrame) -> int:
    """`MinHash.bulk` with its own hash function, then `MinHashLSH`; a shared bucket is a duplicate."""
    from datasketch import MinHash

    return datasketch_survivors(MinHash.bulk(shingle_sets(texts), num_perm=PERMUTATIONS))


def datasketch_xxhash(texts: list[str], queries: pl.DataFrame) -> int:
    """The same with a fast hash function."""
    import xxhash
    from datasketch import MinHash

    def hashed(value: bytes) -> int:
        return xxhash.xxh3_64_intdigest(value) & 0xFFFFFFFF

    return datasketch_survivors(MinHash.bulk(shingle_sets(texts), num_perm=PERMUTATIONS, hashfunc=hashed))


def datasketch_survivors(sketches: list) -> int:
    """Count the sketches that meet no earlier survivor."""
    from datasketch import MinHashLSH

    index, kept = MinHashLSH(params=(16, 8), num_perm=PERMUTATIONS), 0
    for row, sketch in enumerate(sketches):
        if not index.query(sketch):
            index.insert(row, sketch)
            kept += 1
    return kept


def rensa(texts: list[str], queries: pl.DataFrame) -> int:
    """rensa's own deduplicator."""
    from rensa import RMinHash, RMinHashDeduplicator

    deduplicator, kept = RMinHashDeduplicator(THRESHOLD, PERMUTATIONS, True, 16, 1), 0
    for row, text in enumerate(texts):
        words = text.lower().split()
        sketch = RMinHash(num_perm=PERMUTATIONS, seed=1)
        sketch.update([" ".join(words[i : i + WORDS]) for i in range(max(1, len(words) - WORDS + 1))])
        kept += deduplicator.add(str(row), sketch)
    return kept


def measure(method: Callable, path: str, connection) -> None:
    """Run one method in this process and send (CPU s, wall s, peak MB, kept)."""
    from deepdistill_assets.tables import QUERY, conform

    texts = pl.read_parquet(path)["text"]
    ids = pl.Series([f"{row:012x}" for row in range(len(texts))])
    queries = conform(pl.DataFrame({"query_id": ids, "query_text": texts}).with_columns(source=pl.lit("s")), QUERY)
    as_list = [] if method is ours else texts.to_list()
    # Compiled code is loaded from its cache, imports are done.
    method(texts[:200].to_list(), queries.head(200))
    cpu, wall = time.process_time(), time.perf_counter()
    kept = method(as_list, queries)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    connection.send((cpu, wall, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, kept))


def measured(method: Callable, path: str) -> tuple[float, float, float, int]:
    """Measure one method in a fresh process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(method, path, sender))
    process.start()
    sender.close()
    result = receiver.recv()
    process.join()
    return result


def main() -> None:
    """Print one table per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--ours-only", action="store_true")
    arguments = parser.parse_args()
    methods = [ours] if arguments.ours_only else [ours, datasketch_xxhash, datasketch_default]
    if importlib.util.find_spec("rensa") and not arguments.ours_only:
        methods.append(rensa)
    from generate_queries import queries

    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as directory:
            path = str(Path(directory) / "queries.parquet")
            pl.DataFrame({"text": queries(size)}, schema={"text": pl.String}).write_parquet(path)
            # Interleaved, so that what else the machine does falls on all alike.
            rounds = [[measured(method, path) for method in methods] for _ in range(arguments.repeats)]
        medians = [[statistics.median(run[i][k] for run in rounds) for k in range(4)] for i in range(len(methods))]
        print(f"\n{size:,} queries, median of {arguments.repeats}")
        print(f"{'method':22}{'CPU s':>9}{'us/query':>10}{'wall s':>9}{'RSS MB':>9}{'kept':>12}{'ratio':>8}")
        for method, (cpu, wall, memory, kept) in zip(methods, medians, strict=True):
            ratio = cpu / medians[0][0]
            line = f"{method.__name__:22}{cpu:9.2f}{cpu / size * 1e6:10.1f}{wall:9.2f}{memory:9.0f}"
            print(f"{line}{kept:12,.0f}{ratio:8.1f}")


if __name__ == "__main__":
    main()
