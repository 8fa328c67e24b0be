"""Both stages of the selection as Dagster runs them: CPU seconds and memory by the number of responses.

    python tests/benchmarks/benchmark_selection.py --rows 1000000 4000000

Score tables of four sources (32 hex digits of query_id and response_id, four passes, in no order) are made on disk.
Each stage is materialized in a fresh process; columns: CPU seconds (user and system, all threads), peak memory of the
process (VmHWM) above what it had before, decisions, and the sha256 of the whole decision table.
"""

import argparse
import hashlib
import multiprocessing
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

sys.path.append(str(Path(__file__).parents[2]))  # PYTHONPATH comes first: another version can be measured

SOURCES = {"sums": "math", "programs": "code", "chats": "other", "papers": "science"}
PASSES, STAGES = 4, ("stage1_selection", "stage2_selection")


def _ids(rng: np.random.Generator, count: int) -> pl.Series:
    data = rng.bytes(16 * count).hex()
    return pl.Series([data[start : start + 32] for start in range(0, len(data), 32)])


def generate(root: Path, rows: int) -> None:
    """Write grades, verdicts, quality checks and token counts of one teacher."""
    from deepdistill_assets import tables as t
    from deepdistill_resources.io_managers import DATA_FILE, partition_directory

    def write(asset: str, keys: dict[str, str], frame: pl.DataFrame, schema: t.Schema) -> None:
        path = root / partition_directory(asset, keys) / DATA_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        t.conform(frame.select(name for name in frame.columns if name in schema), schema).write_parquet(path)

    for index, (source, category) in enumerate(SOURCES.items()):
        rng, count = np.random.default_rng(index), rows // PASSES // len(SOURCES)
        full, threshold = (5.0, 4.99) if category == "science" else (1.0, 0.7 if category == "other" else 0.99)
        rate = rng.choice([0.0, 0.3, 0.7, 1.0], count, p=[0.1, 0.2, 0.3, 0.4])
        chosen = rng.random((count, PASSES)) < rate[:, None]
        score = np.where(chosen, rng.choice([0.8, 0.9, 1.0], (count, PASSES)) if category == "other" else 1.0, 0.25)
        score *= full
        passed, mean, std = score > threshold, score.mean(axis=1), score.std(axis=1)
        queries = pl.DataFrame({"query_id": _ids(rng, count)}).with_columns(
            source=pl.lit(source), category=pl.lit(category), teacher=pl.lit("r1"), n=pl.lit(PASSES),
            pass_rate=pl.Series(passed.mean(axis=1)), mean=pl.Series(mean), std=pl.Series(std),
            cv=pl.Series(std / mean), max_score=pl.Series(score.max(axis=1)), grade_status=pl.lit("graded"),
        )  # fmt: skip
        write("difficulty_grades", {"partition": source}, queries, t.GRADE)
        kept = pl.Series(rng.random(count * PASSES) < 0.95)
        responses = queries.select("query_id", "source", "category", "teacher")[np.repeat(np.arange(count), PASSES)]
        responses = responses.with_columns(
            _ids(rng, count * PASSES).alias("response_id"), status=pl.lit("ok"),
            verify_score=pl.Series(score.ravel()), verify_score_normalised=pl.Series(score.ravel() / full),
            passed=pl.Series(passed.ravel()), verdict=pl.lit("passed"), keep=kept,
            drop_reason=pl.when(~kept).then(pl.lit("perplexity")), completion_tokens=pl.lit(1000),
        ).sample(fraction=1, shuffle=True, seed=index)  # fmt: skip
        both = {"source": source, "teacher": "r1"}
        write("verified_responses", both, responses, t.VERIFICATION)
        write("quality_checks", both, responses.sample(fraction=1, shuffle=True, seed=9), t.QUALITY_CHECK)
        write("responses", both, responses, t.RESPONSE)


def _memory(name: str) -> float:
    """Return a figure of this process in MB (getrusage would count its parent's peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def _materialize(root: str, stage: str, results: multiprocessing.Queue) -> None:
    import dagster as dg

    from deepdistill_assets.partitions import Partitions
    from deepdistill_assets.recipe import Recipe
    from deepdistill_assets.selection.assets import build_assets
    from deepdistill_resources.io_managers import ParquetIOManager
    from deepdistill_resources.lake import Lake

    model = {"kind": "served", "name": "m", "base_url": "http://127.0.0.1:1/v1", "license": "apache-2.0"}
    training = {"learning_rate": 1e-5, "epochs": 1}
    recipe = Recipe.model_validate(
        {
            "name": "small",
            "title": "Small",
            "description": "For a measurement.",
            "models": {"m": model},
            "sources": {n: {"category": c, "license": "MIT", "reader": "none"} for n, c in SOURCES.items()},
            "teachers": {"r1": {"model": "m"}},
            "selection": {"stage1": {"teacher": "r1"}, "stage2": {}},
            "students": {"s": {"model": "m"}},
            "training": {"stage1": training, "stage2": training},
            "evaluation": {"benchmarks": {}},
        }
    )
    partitions, lake = Partitions.of(recipe), Lake(root=root)
    both = {"partitions_def": partitions.source_teacher, "io_manager_key": "io_manager"}
    upstream = [dg.SourceAsset(name, **both) for name in ("verified_responses", "quality_checks", "responses")]
    upstream += [
        dg.SourceAsset("difficulty_grades", partitions_def=partitions.source, io_manager_key="io_manager"),
        dg.SourceAsset("distillation_queries", partitions_def=partitions.source, io_manager_key="io_manager"),
    ]
    resources = {"lake": lake, "io_manager": ParquetIOManager(lake=lake)}
    before, resident = resource.getrusage(resource.RUSAGE_SELF), _memory("VmRSS")
    dg.materialize([*build_assets(recipe, partitions), *upstream], selection=[stage], resources=resources)
    after = resource.getrusage(resource.RUSAGE_SELF)
    peak = _memory("VmHWM")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    results.put((cpu, peak - resident))


def fingerprint(path: Path) -> tuple[int, str]:
    """Return the number of rows of a table and the sha256 of their hashes, read part by part."""
    rows, digest = 0, hashlib.sha256()
    for batch in pq.ParquetFile(path).iter_batches():
        part = pl.DataFrame(batch)
        rows += part.height
        digest.update(part.hash_rows().to_numpy().tobytes())
    return rows, digest.hexdigest()[:12]


def main() -> None:
    """Generate, materialize each stage, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 4_000_000])
    context = multiprocessing.get_context("spawn")
    print("| responses | stage | CPU s | MB | decisions | sha256 |\n|---:|---|---:|---:|---:|---|")
    for rows in parser.parse_args().rows:
        with tempfile.TemporaryDirectory() as root:
            generate(Path(root), rows)
            for stage in STAGES:
                results = context.Queue()
                process = context.Process(target=_materialize, args=(root, stage, results))
                process.start()
                cpu, memory = results.get()
                process.join()
                decided, digest = fingerprint(Path(root) / stage / "data.parquet")
                print(f"| {rows:,} | {stage} | {cpu:.1f} | {memory:.0f} | {decided:,} | {digest} |", flush=True)


if __name__ == "__main__":
    main()
