"""Near-duplicate removal end to end, side by side with datasketch (and rensa where installed), in one run.

    python tests/benchmarks/benchmark_near_duplicates.py --sizes 20000 100000 --repeats 3

Every measurement is a fresh process that gets the same raw texts (read before the clock starts) and gives back who
survives. The columns: CPU seconds (user and system, all threads), seconds on the wall, peak memory of the process and
what of it is beyond its imports (the texts that it was given included), queries kept, and how many times more CPU than
ours.
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
from itertools import islice
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

THRESHOLD, PERMUTATIONS, WORDS = 0.8, 128, 3
ODD = 0x9E3779B97F4B
WARM, PART = 200, 10_000  # texts


def ours(texts: list[str], queries: pl.DataFrame) -> int:
    """Signatures, clusters verified by exact Jaccard, survivors."""
    from deepdistill_assets.queries.duplicates import duplicate_clusters, without_duplicates
    from deepdistill_assets.queries.minhash import query_signatures
    from deepdistill_assets.recipe import Deduplication
    from deepdistill_assets.tables import QUERY_EMBEDDING, empty
    from deepdistill_resources.memory import give_back_freed_memory

    signatures = query_signatures(queries, 100, Deduplication())
    clusters = duplicate_clusters(signatures.lazy(), empty(QUERY_EMBEDDING).lazy(), Deduplication())
    del signatures
    give_back_freed_memory()  # the next asset is a process of its own
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
    """Run one method in this process and send (CPU s, wall s, peak MB, peak MB beyond imports, kept)."""
    method(*texts_for(method, path, WARM))  # compiled code is loaded from its cache, imports are done
    floor = resident()
    texts, queries = texts_for(method, path, None)
    cpu, wall = time.process_time(), time.perf_counter()
    kept = method(texts, queries)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    connection.send((cpu, wall, peak, peak - floor, kept))


def texts_for(method: Callable, path: str, rows: int | None) -> tuple[list[str], pl.DataFrame]:
    """Return the texts as a method wants them: ours as a table, its peers as a list; the other one is empty."""
    from deepdistill_assets.tables import QUERY, conform, empty

    if method is not ours:
        # In parts, so that they are not in memory twice.
        parts = pq.ParquetFile(path).iter_batches(columns=["text"], batch_size=rows or PART)
        parts = islice(parts, 1) if rows else parts
        return [text for part in parts for text in part["text"].to_pylist()], empty(QUERY)
    texts = pl.read_parquet(path, n_rows=rows)["text"]
    ids = pl.Series([f"{row * ODD % 2**48:012x}" for row in range(len(texts))])  # any order, as hashes have
    table = pl.DataFrame({"query_id": ids, "query_text": texts}).with_columns(source=pl.lit("s"))
    return [], conform(table, QUERY)


def resident() -> float:
    """Return the memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def measured(method: Callable, path: str) -> tuple[float, float, float, float, int]:
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
    parser.add_argument("--directory", help="where the texts stay for the next run; else they go again")
    parser.add_argument("--without", nargs="+", default=[], help="peers that take too long at this size")
    arguments = parser.parse_args()
    methods = [ours] if arguments.ours_only else [ours, datasketch_xxhash, datasketch_default]
    if importlib.util.find_spec("rensa") and not arguments.ours_only:
        methods.append(rensa)
    methods = [method for method in methods if method.__name__ not in arguments.without]
    from generate_queries import queries

    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as temporary:
            path = str(Path(arguments.directory or temporary) / f"near-{size}.parquet")
            if not Path(path).exists():
                pl.DataFrame({"text": queries(size)}, schema={"text": pl.String}).write_parquet(path)
            # Interleaved, so that what else the machine does falls on all alike.
            rounds = [[measured(method, path) for method in methods] for _ in range(arguments.repeats)]
        medians = [[statistics.median(run[i][k] for run in rounds) for k in range(5)] for i in range(len(methods))]
        print(f"\n{size:,} queries, median of {arguments.repeats}")
        print(
            f"{'method':22}{'CPU s':>9}{'us/query':>10}{'wall s':>9}{'RSS MB':>9}{'beyond':>9}{'kept':>12}{'ratio':>8}"
        )
        for method, (cpu, wall, memory, beyond, kept) in zip(methods, medians, strict=True):
            columns = (f"{cpu:.2f}", f"{cpu / size * 1e6:.1f}", f"{wall:.2f}", f"{memory:.0f}", f"{beyond:.0f}")
            shown = (*columns, f"{kept:,.0f}", f"{cpu / medians[0][0]:.1f}")
            print(f"{method.__name__:22}" + "".join(f"{value:>10}" for value in shown), flush=True)


if __name__ == "__main__":
    main()
