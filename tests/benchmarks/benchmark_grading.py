"""Grades from score rows: ours beside polars' streaming group_by, DuckDB and pandas (where installed), in one run.

    python tests/benchmarks/benchmark_grading.py --rows 4000000 --repeats 3

Files of up to a million score rows (16 hex digits of query_id, teacher, verify_score, passed; four passes per query, in
the order of query_id, as partitions are written) are made on disk. Each method reads them in a fresh process, grades
every query (n, n_passed, pass rate, mean, standard deviation, CV, highest score) and writes the grades as parquet.
Texts are not there to be read. Columns: CPU seconds (user and system, all threads) until the grades
are there, and with writing them; peak memory of the process above that of its start; ratios to ours. "whole stage" is
what the asset does: what counts, the grid of queries and teachers, intervals, status.
"""

import argparse
import importlib.util
import multiprocessing
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

sys.path[:0] = [str(Path(__file__).parents[2])]

PASSES, FILE_ROWS = 4, 1_000_000
Grades = Iterator[Callable[[Path], object]]  # each writes grades that are there


def generate(directory: Path, rows: int) -> None:
    """Write the score files, and queries and quality rows for the whole stage."""
    for index, start in enumerate(range(0, rows, FILE_ROWS)):
        rng = np.random.default_rng(index)
        count = min(FILE_ROWS, rows - start) // PASSES
        ids = np.sort(rng.integers(0, 2**63, count, dtype=np.int64))
        query = pl.Series("query_id", [f"{value:016x}" for value in ids])
        rate = rng.choice([0.0, 0.3, 0.7, 1.0], count, p=[0.1, 0.1, 0.1, 0.7])
        passed = rng.random((count, PASSES)) < rate[:, None]
        score = np.where(passed, 1.0, rng.choice([0.0, 0.25, 0.5], (count, PASSES))).ravel()
        scores = pl.DataFrame({"verify_score": score, "passed": passed.ravel()}).with_columns(
            query.gather(np.repeat(np.arange(count), PASSES)),
            pl.format("{}-{}", pl.lit(index), pl.int_range(count * PASSES)).alias("response_id"),
            pl.lit("r1").alias("teacher"),
            pl.lit("ok").alias("status"),
            pl.when("passed").then(pl.lit("passed")).otherwise(pl.lit("failed")).alias("verdict"),
        )
        scores.write_parquet(directory / f"scores-{index:04}.parquet")
        flags = {name: pl.lit(True) for name in ("has_think", "has_answer", "keep")}
        scores.select("response_id", **flags).write_parquet(directory / f"quality-{index:04}.parquet")
        queries = pl.DataFrame({"query_id": query}).with_columns(source=pl.lit("s"), category=pl.lit("math"))
        queries.write_parquet(directory / f"queries-{index:04}.parquet")


def _write(grades: pl.DataFrame, name: str, out: Path) -> None:
    grades.write_parquet(out / name)


def ours(directory: Path) -> Grades:
    """Reduce runs, file by file."""
    from deepdistill_assets.grading.runs import reduce_scores

    n = pl.col("n")
    for file in sorted(directory.glob("scores-*.parquet")):
        scores = pl.read_parquet(file, columns=["query_id", "teacher", "verify_score", "passed"])
        scores = scores.rename({"verify_score": "score"}).with_columns(
            counted=pl.lit(True), unverifiable=pl.lit(False), unresolved=pl.lit(False)
        )
        std = (pl.col("squares") / n).sqrt()
        grades = reduce_scores(scores).select(
            "query_id", "teacher", "n", "n_passed", (pl.col("n_passed") / n).alias("pass_rate"), "mean",
            std.alias("std"), pl.when(pl.col("mean") > 0).then(std / pl.col("mean")).alias("cv"), "max_score",
        )  # fmt: skip
        yield partial(_write, grades, file.name)


def whole_stage(directory: Path) -> Grades:
    """Do what difficulty_grades does, one source per file."""
    from deepdistill_assets.grading.grades import grade
    from deepdistill_assets.grading.runs import reduce_scores
    from deepdistill_assets.scores import QUALITY_COLUMNS, SCORE_COLUMNS, CountingRules, counted_scores

    rules = CountingRules({"r1": PASSES})
    for file in sorted(directory.glob("scores-*.parquet")):
        verified = pl.read_parquet(file, columns=list(SCORE_COLUMNS))
        quality = pl.read_parquet(file.with_name(file.name.replace("scores", "quality")), columns=list(QUALITY_COLUMNS))
        queries = pl.read_parquet(file.with_name(file.name.replace("scores", "queries")))
        grades = grade(queries, reduce_scores(counted_scores(verified, quality, rules)), rules, 0, 0.95)
        yield partial(_write, grades, file.name)


def polars_streaming(directory: Path) -> Grades:
    """polars' streaming group_by over all files."""
    score = pl.col("verify_score")
    grades = (
        pl.scan_parquet(directory / "scores-*.parquet")
        .group_by("query_id", "teacher")
        .agg(
            pl.len().alias("n"),
            pl.col("passed").sum().alias("n_passed"),
            pl.col("passed").mean().alias("pass_rate"),
            score.mean().alias("mean"),
            score.std(ddof=0).alias("std"),
            (score.std(ddof=0) / score.mean()).fill_nan(None).alias("cv"),
            score.max().alias("max_score"),
        )
        .collect(engine="streaming")
    )
    yield lambda out: grades.write_parquet(out / "grades.parquet")


def duckdb_group_by(directory: Path) -> Grades:
    """DuckDB on all cores."""
    import duckdb

    duckdb.sql(
        f"""CREATE TABLE grades AS SELECT query_id, teacher, count(*) AS n, count(*) FILTER (passed) AS n_passed,
        avg(CAST(passed AS INT)) AS pass_rate, avg(verify_score) AS mean, stddev_pop(verify_score) AS std,
        stddev_pop(verify_score) / nullif(avg(verify_score), 0) AS cv, max(verify_score) AS max_score
        FROM read_parquet('{directory}/scores-*.parquet') GROUP BY query_id, teacher"""
    )
    yield lambda out: duckdb.sql(f"COPY grades TO '{out}/grades.parquet' (FORMAT parquet, COMPRESSION zstd)")


def pandas_group_by(directory: Path) -> Grades:
    """Group with pandas."""
    import pandas

    columns = ["query_id", "teacher", "verify_score", "passed"]
    frame = pandas.concat(pandas.read_parquet(file, columns=columns) for file in directory.glob("scores-*.parquet"))
    groups = frame.groupby(["query_id", "teacher"], sort=False)
    scores = groups["verify_score"]
    grades = scores.agg(n="count", mean="mean", max_score="max")
    grades["std"], grades["n_passed"] = scores.std(ddof=0), groups["passed"].sum()
    grades["pass_rate"], grades["cv"] = grades["n_passed"] / grades["n"], grades["std"] / grades["mean"]
    grades = grades.reset_index()
    yield lambda out: grades.to_parquet(out / "grades.parquet", compression="zstd")


METHODS: dict[str, tuple[Callable[[Path], Grades], str]] = {
    "ours": (ours, "polars"),
    "ours, whole stage": (whole_stage, "polars"),
    "polars streaming": (polars_streaming, "polars"),
    "duckdb": (duckdb_group_by, "duckdb"),
    "pandas": (pandas_group_by, "pandas"),
}


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _worker(name: str, directory: str, results: multiprocessing.Queue) -> None:
    method, package = METHODS[name]
    __import__(package)
    import scipy.stats  # noqa: F401

    from deepdistill_assets.grading import grades, kernels  # noqa: F401

    with tempfile.TemporaryDirectory() as warm, tempfile.TemporaryDirectory() as out:
        generate(Path(warm), PASSES)
        if package == "polars":
            list(method(Path(warm)))  # loads what is compiled
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start, writing = _cpu(), 0.0
        for write in method(Path(directory)):
            before = _cpu()
            write(Path(out))
            writing += _cpu() - before
        written = _cpu() - start
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
        found = pl.scan_parquet(f"{out}/*.parquet").select(pl.len(), pl.col("cv").sum().alias("cv")).collect()
    results.put((written - writing, written, memory, *found.row(0)))


def measure(name: str, directory: Path) -> tuple[float, float, float, int, float]:
    """Return CPU seconds until graded, with writing, MB above the start, rows, sum of CV, from a fresh process."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_worker, args=(name, str(directory), results))
    process.start()
    figures = results.get()
    process.join()
    return figures


def main() -> None:
    """Generate, measure in turns, print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--skip", nargs="*", default=[])
    options = parser.parse_args()
    names = [n for n, (_, package) in METHODS.items() if importlib.util.find_spec(package) and n not in options.skip]
    with tempfile.TemporaryDirectory() as directory:
        generate(Path(directory), options.rows)
        runs = {name: [] for name in names}
        for _ in range(options.repeats):
            for name in names:
                runs[name].append(measure(name, Path(directory)))
    medians = {
        name: [statistics.median(column) for column in zip(*figures, strict=True)] for name, figures in runs.items()
    }
    base = medians["ours"]
    print(f"{options.rows:,} score rows, {len(names)} methods, median of {options.repeats}")
    print("| method | graded, CPU s | written, CPU s | MB | grades | graded / ours | written / ours | our MB / its |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, (graded, written, memory, grades, cv) in medians.items():
        assert abs(cv - base[4]) < 1e-6 * base[4], f"{name} grades differently"
        ratios = f"{graded / base[0]:.2f} | {written / base[1]:.2f} | {base[2] / max(memory, 1):.2f}"
        print(f"| {name} | {graded:.2f} | {written:.2f} | {memory:.0f} | {grades:,.0f} | {ratios} |")


if __name__ == "__main__":
    main()
