"""A source is read in bounded memory, whatever its size and format."""

import json
import random
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet
import pytest

READ = """
import resource, sys
from deepdistill_assets.queries.query_table import ingest_queries
from deepdistill_assets.queries.readers import read_rows
from deepdistill_assets.queries.reading import Reading
from deepdistill_assets.recipe import Source

mapping = {"id": "id", "query": "question", "reference_answer": "answer"}
lines = []
rows = read_rows("file", {"path": sys.argv[1], "mapping": mapping}, None, 0, Reading(lines.append))
made = ingest_queries(rows, "s", Source(category="math", license="MIT", reader="file"))
print(made.result.rows_kept, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def noise(seed):
    """Text that hardly compresses: a file that shrinks 200 times is refused as a bomb."""
    return random.Random(seed).randbytes(1000).hex() + " "


def table(start, count):
    return [
        {"id": str(n), "question": f"Question {n}: " + noise(n) + "and so on, " * 100, "answer": str(n)}
        for n in range(start, start + count)
    ]


def write(path, count):
    if path.suffix == ".parquet":
        schema = pa.schema({"id": pa.string(), "question": pa.string(), "answer": pa.string()})
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            for start in range(0, count, 2000):
                writer.write_table(pa.Table.from_pylist(table(start, 2000), schema))
        return
    with pa.output_stream(path, compression="detect") as file:
        for start in range(0, count, 2000):
            file.write(b"".join(json.dumps(row).encode() + b"\n" for row in table(start, 2000)))


def kept_and_megabytes(path):
    found = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
    rows, kilobytes = map(int, found.stdout.split())
    return rows, kilobytes / 1024


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_four_times_the_rows_take_hardly_more_memory(tmp_path, suffix):
    """64,000 rows are 210 MB of text."""
    few, many = tmp_path / f"few{suffix}", tmp_path / f"many{suffix}"
    write(few, 16_000)
    write(many, 64_000)
    (small, start), (large, end) = kept_and_megabytes(few), kept_and_megabytes(many)
    assert (small, large) == (16_000, 64_000)
    assert end - start < 90
