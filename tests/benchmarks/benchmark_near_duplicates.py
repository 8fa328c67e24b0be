"""Near-duplicate removal end to end, side by side with datasketch (and rensa where installed), in one run.

    python tests/benchmarks/benchmark_near_duplicates.py --sizes 20000 100000 --repeats 3

Every measurement is a fresh process that gives back who survives. `ours` and its peers get the same raw texts, read
before the clock starts; `ours_from_file` and `rensa_from_file` read them on the clock, block by block, as the assets
do. `rensa_sets` makes all sets of shingles before it sketches, as datasketch's `bulk` wants them. The columns: CPU
seconds (user and system, all threads), seconds on the wall, peak memory of the process and what of it is beyond its
imports (the texts that it was given included), queries kept, and how many times more CPU than ours.
"""

import argparse
import importlib.util
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable
from itertools import islice
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

THRESHOLD, PERMUTATIONS, WORDS = 0.8, 128, 3
ODD = 0x9E3779B97F4B
WARM, PART, GROUP = 200, 10_000, 16_384  # texts
COLUMNS = ["query_id", "source", "query_text", "reference_answer", "test_cases", "existing_responses"]


def ours(queries: pl.LazyFrame) -> int:
    """Signatures, clusters verified by exact Jaccard, survivors."""
    from deepdistill_assets.queries.duplicates import duplicate_clusters, removed_queries
    from deepdistill_assets.queries.minhash import query_signatures
    from deepdistill_assets.recipe import Deduplication
    from deepdistill_assets.tables import QUERY_EMBEDDING, empty
    from deepdistill_resources.memory import give_back_freed_memory

    signatures, none = pl.concat(query_signatures(queries, 100, Deduplication())), empty(QUERY_EMBEDDING).lazy()
    clusters = duplicate_clusters(signatures.lazy(), queries, none, Deduplication())
    del signatures
    give_back_freed_memory()  # the next asset is a process of its own
    keys = queries.select("query_id", "source").collect(engine="streaming")
    return keys.height - removed_queries(keys, clusters.lazy()).height


def ours_from_file(queries: pl.LazyFrame) -> int:
    """The same, where texts are read block by block."""
    return ours(queries)


def shingles(text: str) -> list[str]:
    """Word 3-grams, as both peers want them."""
    words = text.lower().split()
    return [" ".join(words[i : i + WORDS]) for i in range(max(1, len(words) - WORDS + 1))]


def shingle_sets(texts: Iterable[str]) -> list[set[bytes]]:
    """Sets of them in bytes, as datasketch wants them."""
    return [{shingle.encode() for shingle in shingles(text)} for text in texts]


def datasketch_default(texts: Iterable[str]) -> int:
    """`MinHash.bulk` with its own hash function, then `MinHashLSH`; a shared bucket is a duplicate."""
    from datasketch import MinHash

    return datasketch_survivors(MinHash.bulk(shingle_sets(texts), num_perm=PERMUTATIONS))


def datasketch_xxhash(texts: Iterable[str]) -> int:
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


def rensa(texts: Iterable[str]) -> int:
    """rensa's own deduplicator, fed one text after the other."""
    return rensa_survivors(shingles(text) for text in texts)


def rensa_from_file(texts: Iterable[str]) -> int:
    """The same, where texts are read part by part."""
    return rensa(texts)


def rensa_sets(texts: Iterable[str]) -> int:
    """rensa's own deduplicator after all sets of shingles were made."""
    return rensa_survivors([set(shingles(text)) for text in texts])


def rensa_survivors(documents: Iterable[Collection[str]]) -> int:
    """Count what its deduplicator keeps."""
    from rensa import RMinHash, RMinHashDeduplicator

    deduplicator, kept = RMinHashDeduplicator(THRESHOLD, PERMUTATIONS, True, 16, 1), 0
    for row, document in enumerate(documents):
        sketch = RMinHash(num_perm=PERMUTATIONS, seed=1)
        sketch.update(document)
        kept += deduplicator.add(str(row), sketch)
    return kept


METHODS = [ours, ours_from_file, datasketch_xxhash, datasketch_default]
RENSA = [rensa, rensa_from_file, rensa_sets]


def measure(method: Callable, path: str, connection) -> None:
    """Run one method in this process and send (CPU s, wall s, peak MB, peak MB beyond imports, kept)."""
    method(queries_for(method, path, WARM))  # compiled code is loaded from its cache, imports are done
    floor = memory("VmRSS")
    queries = queries_for(method, path, None)
    cpu, wall = time.process_time(), time.perf_counter()
    kept = method(queries)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = memory("VmHWM")
    connection.send((cpu, wall, peak, peak - floor, kept))


def queries_for(method: Callable, path: str, rows: int | None) -> pl.LazyFrame | Iterable[str]:
    """Return the first queries as a method wants them: a table or texts, in memory or read when they are asked for."""
    if method is ours_from_file:
        return pl.scan_parquet(path, n_rows=rows)
    if method is ours:
        return pl.read_parquet(path, n_rows=rows, columns=COLUMNS).lazy()
    parts = pq.ParquetFile(path).iter_batches(columns=["query_text"], batch_size=rows or PART)
    parts = islice(parts, 1) if rows else parts
    texts = (text for part in parts for text in part["query_text"].to_pylist())
    return texts if method is rensa_from_file else list(texts)


def generate(path: str, size: int) -> None:
    """Write a table of queries, with ids in any order, as hashes have."""
    from generate_queries import queries

    from deepdistill_assets.tables import QUERY, conform

    ids = [f"{row * ODD % 2**48:012x}" for row in range(size)]
    table = pl.DataFrame({"query_id": ids, "query_text": queries(size)}).with_columns(source=pl.lit("s"))
    conform(table, QUERY).write_parquet(path, compression="lz4", row_group_size=GROUP)


def memory(name: str) -> float:
    """Return a figure of /proc/self/status in MB; `ru_maxrss` would begin at what the parent had."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return next(int(line[1]) for line in lines if line[0] == f"{name}:") / 1024


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
    parser.add_argument("--directory", help="where the texts stay for the next run; else they go again")
    parser.add_argument("--without", nargs="+", default=[], help="methods that take too long at this size")
    arguments = parser.parse_args()
    methods = METHODS + (RENSA if importlib.util.find_spec("rensa") else [])
    methods = [method for method in methods if method.__name__ not in arguments.without]
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as temporary:
            path = str(Path(arguments.directory or temporary) / f"near-{size}.parquet")
            if not Path(path).exists():
                generate(path, size)
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
