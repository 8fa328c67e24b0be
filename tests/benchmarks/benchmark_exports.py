"""What handles the texts of the responses, stage I's dataset and the export: CPU seconds and memory by their size.

    python tests/benchmarks/benchmark_exports.py --rows 20000 80000 --text-bytes 20000

Tables of two sources (four passes per query, half of the responses selected) are made on disk. Each asset is
materialized in a fresh process; columns: bytes of text, CPU seconds (user and system, all threads), peak memory of the
process (VmHWM) above what it had before. A dataset is put together 10,000 rows at a time, whatever its size.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

sys.path.append(str(Path(__file__).parents[2]))  # PYTHONPATH comes first: another version can be measured

SOURCES = {"sums": "math", "chats": "other"}
PASSES, ASSETS, WRITE_ROWS = 4, ("stage1_dataset", "published_dataset"), 10_000


def generate(root: Path, rows: int, text_bytes: int) -> None:
    """Write all that the two assets read."""
    from deepdistill_assets import tables as t
    from deepdistill_resources.io_managers import DATA_FILE, partition_directory
    from deepdistill_resources.lake import Lake
    from deepdistill_resources.stage_result import TableParts

    lake = Lake(root=str(root))

    def write(asset: str, keys: dict[str, str] | None, frame: pl.DataFrame, schema: t.Schema) -> None:
        found = frame.select(name for name in frame.columns if name in schema)
        lake.write_table(f"{partition_directory(asset, keys)}/{DATA_FILE}", t.conform(found, schema))

    decisions = []
    for index, (source, category) in enumerate(SOURCES.items()):
        rng, count = np.random.default_rng(index), rows // PASSES // len(SOURCES)
        queries = pl.DataFrame({"query_id": _ids(rng, count)}).with_columns(
            source=pl.lit(source), category=pl.lit(category), license=pl.lit("MIT"), query_text=pl.lit("x" * 500),
            messages=pl.concat_list(pl.struct(role=pl.lit("user"), content=pl.lit("x" * 500))),
        )  # fmt: skip
        write("distillation_queries", {"partition": source}, queries, t.QUERY)
        both = {"source": source, "teacher": "r1"}
        grades = queries.with_columns(teacher=pl.lit("r1"), pass_rate=pl.lit(0.5), n=pl.lit(PASSES))
        write("difficulty_grades", {"partition": source}, grades, t.GRADE)
        write("contamination", {"partition": source}, queries.head(0), t.CONTAMINATION)
        scores = queries.select("query_id", "source", "category")[np.repeat(np.arange(count), PASSES)]
        scores = scores.with_columns(
            _ids(rng, count * PASSES).alias("response_id"), teacher=pl.lit("r1"), verify_score=pl.lit(1.0),
            passed=pl.lit(True), keep=pl.Series(rng.random(count * PASSES) < 0.5), perplexity=pl.lit(2.0),
            completion_tokens=pl.lit(text_bytes // 4), engine=pl.lit("vllm"),
        )  # fmt: skip
        write("verified_responses", both, scores, t.VERIFICATION)
        write("quality_checks", both, scores, t.QUALITY_CHECK)
        decisions.append(scores)
        parts = TableParts(t.RESPONSE)
        for part in scores.iter_slices(WRITE_ROWS):
            think = pl.Series("think", [rng.bytes(text_bytes // 2).hex() for _ in range(part.height)])
            part = part.with_columns(think, answer=pl.lit("yes"), text=pl.concat_str(pl.lit("<think>"), think))
            parts.add(t.conform(part.select(name for name in part.columns if name in t.RESPONSE), t.RESPONSE))
        lake.write_table(f"{partition_directory('responses', both)}/{DATA_FILE}", parts.scan())
    write("stage1_selection", None, pl.concat(decisions).sort("response_id"), t.DECISION)
    model = pl.DataFrame({"name": ["r1"], "origin": ["hub"], "license": ["MIT"]})
    write("teacher_models", {"partition": "r1"}, model, t.MODEL)


def _ids(rng: np.random.Generator, count: int) -> pl.Series:
    data = rng.bytes(16 * count).hex()
    return pl.Series([data[start : start + 32] for start in range(0, len(data), 32)])


def _memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def _materialize(root: str, name: str, results: multiprocessing.Queue) -> None:
    import dagster as dg

    from deepdistill_assets.partitions import Partitions
    from deepdistill_assets.publishing import assets as publishing
    from deepdistill_assets.recipe import Recipe
    from deepdistill_assets.selection import assets as selection
    from deepdistill_resources.io_managers import ParquetIOManager
    from deepdistill_resources.lake import Lake

    model = {"kind": "served", "name": "m", "base_url": "http://127.0.0.1:1/v1", "license": "apache-2.0"}
    recipe = Recipe.model_validate(
        {
            "name": "small",
            "title": "Small",
            "description": "For a measurement.",
            "models": {"m": model},
            "sources": {n: {"category": c, "license": "MIT", "reader": "none"} for n, c in SOURCES.items()},
            "teachers": {"r1": {"model": "m"}},
            "selection": {"stage1": {"teacher": "r1"}},
            "students": {"s": {"model": "m"}},
            "training": {"stage1": {"learning_rate": 1e-5, "epochs": 1}},
            "evaluation": {"benchmarks": {}},
        }
    )
    partitions, lake = Partitions.of(recipe), Lake(root=root)
    assets = [asset for room in (selection, publishing) for asset in room.build_assets(recipe, partitions)]
    given = {
        partitions.source: ("distillation_queries", "difficulty_grades", "contamination"),
        partitions.source_teacher: ("responses", "verified_responses", "quality_checks"),
        partitions.teacher: ("teacher_models",),
    }
    specs = [dg.AssetSpec(asset, partitions_def=by) for by, names in given.items() for asset in names]
    resources = {"lake": lake, "io_manager": ParquetIOManager(lake=lake)}
    before, resident = resource.getrusage(resource.RUSAGE_SELF), _memory("VmRSS")
    dg.materialize([*assets, *specs], selection=[name], resources=resources)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    results.put((cpu, _memory("VmHWM") - resident))


def main() -> None:
    """Generate, materialize each asset, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 80_000])
    parser.add_argument("--text-bytes", type=int, default=20_000)
    parser.add_argument("--assets", nargs="+", choices=ASSETS, default=ASSETS)
    options, context = parser.parse_args(), multiprocessing.get_context("spawn")
    print("| responses | text, MB | asset | CPU s | MB |\n|---:|---:|---|---:|---:|")
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as root:
            generate(Path(root), rows, options.text_bytes)
            for name in options.assets:
                results = context.Queue()
                process = context.Process(target=_materialize, args=(root, name, results))
                process.start()
                cpu, memory = results.get()
                process.join()
                size = rows * options.text_bytes / 1e6
                print(f"| {rows:,} | {size:,.0f} | {name} | {cpu:.1f} | {memory:.0f} |", flush=True)


if __name__ == "__main__":
    main()
