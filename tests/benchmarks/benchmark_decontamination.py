"""Decontamination, side by side with the plain way to do it, in one run.

    python tests/benchmarks/benchmark_decontamination.py --queries 20000 --problems 2000 --dimension 384
    python tests/benchmarks/benchmark_decontamination.py --queries 1000000 --problems 5000 --dimension 1024 --no-texts

Two tables. Texts: exact and n-gram matches, ours beside a Python loop over sets of 13-word tuples. Vectors: every pair
above cosine 0.9 (random unit vectors with planted neighbours), stored as the lake stores them; ours reads them block
by block, faiss `IndexFlatIP.range_search` (where installed: `pip install faiss-cpu` in an environment of its own)
gets them from a mapped array in blocks of the same size, and all at once. Each is a fresh process; matches must be
identical.
"""

import argparse
import importlib.util
import multiprocessing
import re
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import polars as pl

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

WORDS, SHARE, THRESHOLD = 13, 0.5, 0.9
PART = 50_000  # vectors of one stored file
Pairs = set[tuple[int, int]]


def frames(queries: int, problems: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return queries and problems; one problem in twenty stands, with a frame around it, among the queries."""
    import generate_queries

    texts = list(islice(generate_queries.queries(2 * problems, seed=1), problems))
    own = list(generate_queries.queries(queries, seed=2))
    for place, text in zip(range(0, queries, max(1, queries * 20 // problems)), texts[::20], strict=False):
        own[place] = f"Solve this.\n\n{text.upper()}\n\nThink step by step."
    nothing = pl.Series(["x"] * queries)
    left = pl.DataFrame({"query_id": [f"q{row}" for row in range(queries)], "source": nothing, "query_text": own})
    ids = [f"p{row}" for row in range(problems)]
    return left, pl.DataFrame({"problem_id": ids, "benchmark": ["b"] * problems, "problem_text": texts})


def ours_on_texts(queries: pl.DataFrame, problems: pl.DataFrame) -> set[tuple[str, str]]:
    """Return the pairs with enough shared n-grams (or equal), by the compiled look-up."""
    from deepdistill_assets.queries.decontamination import contamination
    from deepdistill_assets.recipe import Decontamination

    settings = Decontamination(ngram_words=WORDS, ngram_share=SHARE, semantic_threshold=None)
    return set(contamination(queries, problems, settings).select("query_id", "problem_id").iter_rows())


def grams(text: str) -> set[tuple[str, ...]]:
    """Return the 13-word tuples of a text without punctuation."""
    spaced = re.sub("([\u3000-\u9fff])", r" \1 ", text.lower())
    words = "".join(letter if letter.isalnum() else " " for letter in spaced).split()
    return {tuple(words[start : start + WORDS]) for start in range(len(words) - WORDS + 1)}


def python_loop(queries: pl.DataFrame, problems: pl.DataFrame) -> set[tuple[str, str]]:
    """Return the pairs whose 13-word tuples overlap enough."""
    owners, sizes, found = defaultdict(list), {}, set()
    for name, text in problems.select("problem_id", "problem_text").iter_rows():
        parts = grams(text)
        sizes[name] = len(parts)
        for part in parts:
            owners[part].append(name)
    for part in [part for part, names in owners.items() if len(names) >= 3]:
        for name in owners.pop(part):
            sizes[name] -= 1
    for query, text in queries.select("query_id", "query_text").iter_rows():
        shared, parts = defaultdict(int), grams(text)
        for part in parts:
            for name in owners.get(part, ()):
                shared[name] += 1
        found |= {(query, name) for name, count in shared.items() if count >= SHARE * min(sizes[name], len(parts))}
    return found


def store_vectors(directory: str, queries: int, problems: int, dimension: int) -> None:
    """Write unit vectors, as an embedding table and as a plain array; one query in a hundred is close to a problem."""
    from deepdistill_resources.lake import Lake

    generator = np.random.default_rng(0)
    right = unit(generator.normal(size=(problems, dimension)))
    np.save(f"{directory}/problems.npy", right)
    left = np.lib.format.open_memmap(f"{directory}/queries.npy", "w+", np.float32, (queries, dimension))
    lake = Lake(root=directory)
    for part, start in enumerate(range(0, queries, PART)):
        block = generator.normal(size=(min(PART, queries - start), dimension))
        near = np.arange(0, len(block), 100)
        block[near] = right[(start + near) % problems] + 0.4 * block[near] / np.sqrt(dimension)
        left[start : start + len(block)] = unit(block)
        rows = pl.DataFrame({"query_id": pl.int_range(start, start + len(block), eager=True).cast(pl.String)})
        vectors = pl.Series(left[start : start + len(block)]).cast(pl.List(pl.Float32))
        lake.write_table(f"{part:04}.parquet", rows.with_columns(source=pl.lit("s"), embedding=vectors))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors of length one, float32."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def ours_on_vectors(directory: str) -> Pairs:
    """Return the pairs above the threshold, from the stored table."""
    from deepdistill_assets.queries.decontamination import BenchmarkIndex
    from deepdistill_assets.queries.vectors import placed_vectors
    from deepdistill_assets.recipe import Decontamination
    from deepdistill_resources.lake import Lake

    right = np.load(f"{directory}/problems.npy")
    problems = pl.DataFrame({"problem_text": pl.Series(["no numbers here"]).new_from_index(0, len(right))})
    settings = Decontamination(semantic_threshold=THRESHOLD)
    index = BenchmarkIndex(problems.with_columns(benchmark=pl.lit("b")), right, settings)
    stored = Lake(root=directory).scan_tables(sorted(path.name for path in Path(directory).glob("*.parquet")))
    rows = stored.select("query_id", "source").collect()
    pairs = index.close_vectors(placed_vectors(rows, stored))
    return set(pairs.select("query", "problem").iter_rows())


def faiss_in_blocks(directory: str) -> Pairs:
    """Return the pairs above the threshold, by faiss on blocks of a mapped file."""
    left = np.load(f"{directory}/queries.npy", mmap_mode="r")
    return faiss_pairs(directory, ((start, left[start : start + 4096]) for start in range(0, len(left), 4096)))


def faiss_at_once(directory: str) -> Pairs:
    """Return the pairs above the threshold, by faiss with all vectors in memory."""
    return faiss_pairs(directory, [(0, np.load(f"{directory}/queries.npy"))])


def faiss_pairs(directory: str, blocks: Iterable[tuple[int, np.ndarray]]) -> Pairs:
    """Search each block in a flat index of the problems."""
    import faiss

    right = np.load(f"{directory}/problems.npy")
    index = faiss.IndexFlatIP(right.shape[1])
    index.add(right)
    found: Pairs = set()
    for start, block in blocks:
        limits, _, problems = index.range_search(np.ascontiguousarray(block), THRESHOLD)
        queries = np.repeat(np.arange(len(block)), np.diff(limits.astype(np.int64))) + start
        found |= set(zip(queries.tolist(), problems.tolist(), strict=True))
    return found


def measure(method: Callable, arguments: tuple, warm: tuple, connection) -> None:
    """Run one method in this process and send (CPU s, wall s, peak MB, matches)."""
    method(*warm)  # imports are done, compiled code is loaded
    cpu, wall = time.process_time(), time.perf_counter()
    found = method(*arguments)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    connection.send((cpu, wall, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, found))


def measured(method: Callable, arguments: tuple, warm: tuple) -> tuple[float, float, float, Pairs]:
    """Measure one method in a fresh process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(method, arguments, warm, sender))
    process.start()
    sender.close()
    result = receiver.recv()
    process.join()
    return result


def table(title: str, methods: list[Callable], arguments: tuple, warm: tuple) -> None:
    """Run each method once and print CPU seconds, wall seconds, matches and the ratio to the first."""
    print(f"\n{title}\n{'method':18}{'CPU s':>9}{'wall s':>9}{'peak MB':>9}{'matches':>9}{'same':>6}{'ratio':>8}")
    results = [measured(method, arguments, warm) for method in methods]
    for method, (cpu, wall, peak, found) in zip(methods, results, strict=True):
        same = "yes" if found == results[0][3] else "no"
        line = f"{method.__name__:18}{cpu:9.2f}{wall:9.2f}{peak:9.0f}{len(found):9,}"
        print(f"{line}{same:>6}{cpu / results[0][0]:8.2f}", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=20_000)
    parser.add_argument("--problems", type=int, default=2_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--no-texts", action="store_true")
    parser.add_argument("--directory", help="where vectors stay for the next run of the same size; else they go again")
    chosen = parser.parse_args()
    if not chosen.no_texts:
        left, right = frames(chosen.queries, chosen.problems)
        title = f"Texts: {chosen.queries:,} queries, {chosen.problems:,} problems"
        table(title, [ours_on_texts, python_loop], (left, right), (left.head(100), right.head(100)))
    peers = [faiss_in_blocks, faiss_at_once] if importlib.util.find_spec("faiss") else []
    with tempfile.TemporaryDirectory() as temporary, tempfile.TemporaryDirectory() as small:
        directory = chosen.directory or temporary
        # In a process of its own: a child's peak memory begins at its parent's.
        for place, queries, problems in ((directory, chosen.queries, chosen.problems), (small, 200, 10)):
            if (Path(place) / "queries.npy").exists():
                continue
            arguments = (place, queries, problems, chosen.dimension)
            writer = multiprocessing.get_context("spawn").Process(target=store_vectors, args=arguments)
            writer.start()
            writer.join()
        title = f"Vectors of {chosen.dimension}: {chosen.queries:,} queries, {chosen.problems:,} problems"
        table(title, [ours_on_vectors, *peers], (directory,), (small,))


if __name__ == "__main__":
    main()
