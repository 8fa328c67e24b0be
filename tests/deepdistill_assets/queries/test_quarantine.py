"""What cannot become a query is kept with its bytes, can be mended by a person and is read again."""

import gzip
import hashlib
import json
import random

import dagster as dg
import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest

from deepdistill_assets.partitions import Partitions
from deepdistill_assets.queries import formats, ingestion
from deepdistill_assets.queries.assets import build_assets
from deepdistill_assets.queries.corrections import Corrections
from deepdistill_assets.queries.quarantine import quarantine_path, read_quarantine, to_correct
from deepdistill_assets.queries.query_table import ingest_queries, quarantined
from deepdistill_assets.queries.readers import input_stamp, read_rows
from deepdistill_assets.queries.reading import Reading
from deepdistill_assets.queries.references import with_usable_references
from deepdistill_assets.recipe import Recipe, Source, load_recipe
from deepdistill_assets.tables import QUARANTINE
from deepdistill_resources.engines.resource import EngineResource
from deepdistill_resources.errors import RecipeError, SourceError
from deepdistill_resources.io_managers import ParquetIOManager
from deepdistill_resources.lake import Lake
from deepdistill_resources.models import ModelStore
from jobs.cli import OK, main

MAPPING = {"id": "id?", "query": "question", "reference_answer": "answer"}
GOOD = b'{"id": "1", "question": "What is 1 + 1?", "answer": "2"}'
OTHER = b'{"id": "2", "question": "What is 2 + 2?", "answer": "4"}'
MATH = Source(category="math", license="CC0-1.0", reader="file")


def lines(*rows: bytes) -> bytes:
    return b"\n".join(rows) + b"\n"


ALIVE = []  # what was ingested is in files that go with its result


def small_digits():
    values = load_recipe("digits").model_dump(mode="json")
    for entry in [*values["sources"].values(), *values["evaluation"]["benchmarks"].values()]:
        entry["options"] = {}
    return values


def resources(lake):
    store, io_manager = ModelStore(directory="/nowhere"), ParquetIOManager(lake=lake)
    return {"io_manager": io_manager, "lake": lake, "model_store": store, "engine": EngineResource()}


def ingested(path, reading=None, source=MATH, **options):
    rows = read_rows("file", {"path": str(path), "mapping": MAPPING, **options}, None, 0, reading)
    ALIVE.append(ingest_queries(rows, "s", source))
    return ALIVE[-1]


def test_a_quarantined_row_has_file_line_offset_reason_bytes_and_hash(tmp_path):
    bad = b'{"question": "q?", "answer": 4}'
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + lines(GOOD, b"", b"{torn", bad))
    rows = ingested(tmp_path / "rows.jsonl").quarantine.collect()
    assert rows.schema == pl.Schema(QUARANTINE)
    torn, coerced = rows.iter_rows(named=True)
    assert (torn["file"], torn["line"], torn["reason"], torn["raw"]) == ("rows.jsonl", 3, "invalid_json", b"{torn")
    assert (coerced["place"], coerced["reason"], coerced["raw"]) == ("rows.jsonl:4", "type:answer", bad)
    assert coerced["sha256"] == hashlib.sha256(bad).hexdigest() and coerced["bytes"] == len(bad)
    content = (tmp_path / "rows.jsonl").read_bytes()
    assert all(content[row["byte_offset"] :].startswith(row["raw"]) for row in (torn, coerced))


def test_csv_rows_keep_their_own_bytes(tmp_path):
    bad = b'"a ""quoted""\r\nquestion",caf\xe9'
    (tmp_path / "rows.csv").write_bytes(b"\xef\xbb\xbfquestion,answer\r\nq1,1\r\n\r\n" + bad + b"\r\nq3\r\nq4,4\r\n")
    reading = Reading()
    made = ingested(tmp_path / "rows.csv", reading)
    assert made.result.rows_kept == 2
    rows = made.quarantine.collect()
    assert rows["raw"].to_list() == [bad, b"q3"] and rows["reason"].to_list() == ["invalid_utf8", "columns"]
    content = (tmp_path / "rows.csv").read_bytes()
    assert content[rows["byte_offset"][1] :].startswith(b"q3\r\n")
    assert reading.notes["normalised_bom"] == 1 and reading.notes["normalised_crlf"] == 7


def test_what_is_accepted_all_the_same_is_counted(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD + b"\r\n\n  \n" + OTHER[:-1] + b', "level": 3}\n')
    (tmp_path / "b.jsonl").write_bytes(b"")
    reading = Reading()
    assert ingested(tmp_path / "*.jsonl", reading).result.rows_kept == 2
    assert dict(reading.notes) == {
        "files": 2,
        "empty_files": 1,
        "normalised_bom": 1,
        "normalised_crlf": 1,
        "normalised_blank_lines": 2,
    }
    assert reading.extra_columns == {"level"}


def test_long_queries_are_quarantined_without_their_text_and_long_rows_with_their_beginning(tmp_path):
    long = b'{"question": "' + b"x" * 300_000 + b'", "answer": "1"}'
    torn = b'{"question": "' + b"y" * 300_000
    (tmp_path / "rows.jsonl").write_bytes(lines(GOOD, long, torn))
    too_long, cut = ingested(tmp_path / "rows.jsonl").quarantine.collect().iter_rows(named=True)
    assert too_long["reason"] == "too_long" and "300,000 characters" in too_long["detail"]
    assert too_long["raw"] is None and too_long["bytes"] == len(long)
    assert cut["raw"] == torn[: 64 * 1024] and cut["bytes"] == len(torn)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("b.jsonl.gz", gzip.compress(OTHER * 1000)[:-30]),
        ("b.jsonl.gz", gzip.compress(OTHER + b"\n")[:-8] + b"\0" * 8),
        ("b.jsonl.gz", gzip.compress(lines(OTHER)) + b"tail"),
        ("b.jsonl.gz", OTHER),
        ("b.jsonl.zst", pa.compress(lines(*[OTHER] * 1000), "zstd", asbytes=True)[:-10]),
        ("b.jsonl", gzip.compress(OTHER)),
        ("b.jsonl", lines(b'{"questoin": "q", "answer": "1"}')),
        ("b.parquet", b"PAR1 nothing PAR1"),
        ("b.csv", b'question,answer\nq,1\n"open,1\nx,2\n'),
        ("b.json", b'[{"question": "q"'),
    ],
)
def test_a_bad_file_leaves_whole_and_the_others_go_on(tmp_path, name, content):
    (tmp_path / "a.jsonl").write_bytes(lines(GOOD))
    (tmp_path / name).write_bytes(content)
    (tmp_path / "c.jsonl").write_bytes(lines(OTHER))
    made = ingested(tmp_path / "*")
    assert made.result.rows_kept == 2, "none of the bad file"
    reasons = made.result.dropped_by_reason()
    assert reasons["unreadable_file"] == 1 and set(reasons) <= {"unreadable_file", "torn_file"}
    named = made.quarantine.filter(pl.col("reason") == "unreadable_file").collect().row(0, named=True)
    assert named["file"] == named["place"] == name and named["line"] is None
    with pytest.raises(SourceError, match=name):
        ingested(tmp_path / "*", strict_files=True)


def test_a_column_that_a_file_lacks_is_named_with_the_closest(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(GOOD))
    (tmp_path / "b.jsonl").write_bytes(lines(b'{"questoin": "q", "answer": "1"}'))
    detail = ingested(tmp_path / "*").quarantine.collect()["detail"][0]
    assert "no column 'question'" in detail and "Closest is 'questoin'" in detail


def test_parquet_pages_that_are_no_utf8_cost_their_row_alone(tmp_path):
    table = pa.table({"question": ["q1", "qXX", "q3"], "answer": ["1", "2", "3"]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet", compression="none", use_dictionary=False)
    data = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(data.replace(b"qXX", b"q\xff\xfe"))
    made = ingested(tmp_path / "t.parquet")
    assert made.result.rows_kept == 2 and made.result.dropped_by_reason() == {"invalid_utf8": 1}


def test_numbers_and_nulls_of_parquet_are_not_coerced(tmp_path):
    table = pa.table({"question": ["a", "b", None], "answer": ["007", None, "1"], "score": [float("nan"), 1.0, 2.0]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    made = ingested(tmp_path / "t.parquet")
    kept = made.result.kept.collect()
    assert kept["reference_answer"].to_list() == ["007"]
    assert json.loads(kept["metadata"][0])["extra"] == {"score": "nan"}
    assert made.result.dropped_by_reason() == {"null:answer": 1, "null:question": 1}


def test_decompression_is_capped_in_ratio_and_size(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(*[GOOD] * 1000)))
    with pytest.raises(SourceError, match=r"more than 1,000 bytes.*max_decompressed_bytes"):
        ingested(tmp_path / "a.jsonl.gz", max_decompressed_bytes=1000)
    monkeypatch.setattr(formats, "RATIO_FREE_BYTES", 2**20)
    for name, bomb in {
        "b.jsonl.gz": gzip.compress(b" " * 2**24),
        "b.jsonl.zst": pa.compress(b" " * 2**24, "zstd", asbytes=True),
    }.items():
        (tmp_path / name).write_bytes(bomb)
        with pytest.raises(SourceError, match="more than 200 times"):
            ingested(tmp_path / name)
    pyarrow.parquet.write_table(
        pa.table({"question": ["x" * 2**23] * 4, "answer": ["1"] * 4}),
        tmp_path / "b.parquet",
        compression="zstd",
        use_dictionary=False,
    )
    with pytest.raises(SourceError, match="more than 200 times"):
        ingested(tmp_path / "b.parquet")


def test_paths_do_not_lead_out(tmp_path):
    with pytest.raises(RecipeError, match="must not lead out"):
        read_rows("file", {"path": "data/../../secret.jsonl", "mapping": MAPPING}, None, 0)
    (tmp_path / "secret.jsonl").write_bytes(lines(GOOD))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(SourceError, match=r"outside its directory.*follow_links"):
        ingested(tmp_path / "in" / "*.jsonl")
    assert ingested(tmp_path / "in" / "*.jsonl", follow_links=True).result.rows_kept == 1


def test_references_that_no_verifier_can_use(tmp_path):
    rows = [
        {"question": "exact", "answer": "12"},
        {"question": "algebra", "answer": "\\\\frac{\\\\sqrt{3}}{2}".replace("\\\\", "\\")},
        {"question": "in words", "answer": "all even numbers"},
        {"question": "empty", "answer": "  "},
        {"question": "empty box", "answer": "\\boxed{}"},
        {"question": "explosive", "answer": "9^{9^{9^{9}}}"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_rows("file", {"path": str(tmp_path / "rows.jsonl"), "mapping": MAPPING}, None, 0)
    made = ingest_queries(with_usable_references(read, "math"), "s", MATH)
    assert made.result.kept.collect()["query_text"].to_list() == ["exact", "algebra", "in words"]
    assert made.result.dropped_by_reason() == {"bad_gold": 3}
    assert made.quarantine.collect()["raw"].null_count() == 0


@pytest.mark.parametrize(("judged", "kept"), [(False, []), (True, ["every odd number"])])
def test_a_math_reference_that_only_a_judge_can_read_is_left_to_it(tmp_path, judged, kept):
    rows = [
        {"question": "every odd number", "answer": r"2n+1, n \in \mathbb{Z}"},
        {"question": "explosive", "answer": "9^{9^{9^{9}}}"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_rows("file", {"path": str(tmp_path / "rows.jsonl"), "mapping": MAPPING}, None, 0)
    made = ingest_queries(with_usable_references(read, "math", judged), "s", MATH)
    assert made.result.kept.collect()["query_text"].to_list() == kept
    assert made.result.dropped_by_reason() == {"bad_gold": 2 - len(kept)}


def test_a_multiple_choice_reference_must_be_an_option(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"q": "q?", "o": ["x", "y"], "a": answer}) + "\n" for answer in ("B", "x", "C", "z"))
    )
    mapping = {"query": "q", "options": "o", "reference_answer": "a"}
    read = read_rows("file", {"path": str(tmp_path / "rows.jsonl"), "mapping": mapping}, None, 0)
    made = ingest_queries(with_usable_references(read, "science"), "s", MATH)
    assert made.result.kept.collect()["reference_answer"].to_list() == ["B", "x"]
    assert made.result.dropped_by_reason() == {"bad_gold": 2}


def correct(path, rows, **answers):
    """Write the corrections file of some quarantined rows, `row` replaced by place where one is given."""
    made = [json.loads(line) for line in to_correct(rows)]
    for line in made:
        if line["place"] in answers:
            line["row"] = answers[line["place"]]
    path.write_text("".join(json.dumps(line) + "\n" for line in made))


def test_mended_rows_are_read_and_dismissed_ones_are_not_counted(tmp_path):
    conflict = OTHER.replace(b'"4"', b'"5"')
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(GOOD, b'{"question": "q?", "answer": 4}', b"{torn", OTHER, conflict, b"{lost"))
    before = ingested(path)
    assert before.result.dropped_by_reason() == {"duplicate_conflict": 2, "invalid_json": 2, "type:answer": 1}
    mended = {
        "rows.jsonl:2": {"question": "q?", "answer": "4"},
        "rows.jsonl:3": '{"question": "torn?", "answer": "1"}',
        "rows.jsonl:5": None,
    }
    correct(tmp_path / "mended.jsonl", before.quarantine.collect(), **mended)
    reading = Reading(corrections=Corrections.load(str(tmp_path / "mended.jsonl")))
    after = ingested(path, reading)
    assert after.result.kept.collect()["query_text"].to_list() == [
        "What is 1 + 1?",
        "q?",
        "torn?",
        "What is 2 + 2?",
    ]
    assert after.result.dropped_by_reason() == {"discarded": 1, "invalid_json": 1}
    assert quarantined(after.result) == 1, "the line that nobody mended stays"
    assert after.quarantine.collect()["sha256"][0] == hashlib.sha256(b"{lost").hexdigest()


def test_a_correction_of_another_row_is_not_used(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(GOOD, b"{torn"))
    correct(tmp_path / "mended.jsonl", ingested(path).quarantine.collect(), **{"rows.jsonl:2": {"question": "q"}})
    path.write_bytes(lines(GOOD, OTHER))
    reading = Reading(corrections=Corrections.load(str(tmp_path / "mended.jsonl")))
    assert ingested(path, reading).result.rows_kept == 2
    assert reading.corrections.unused == ["rows.jsonl:2"]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{torn", "mended.jsonl:1: invalid_json"),
        ("[1]", "place, sha256 and row"),
        ('{"place": "a:1", "sha256": "x", "row": 4}', "row is an object"),
    ],
)
def test_a_bad_corrections_file_is_named(tmp_path, content, match):
    (tmp_path / "mended.jsonl").write_text(content)
    with pytest.raises(SourceError, match=match):
        Corrections.load(str(tmp_path / "mended.jsonl"))


def test_from_a_refused_source_to_a_mended_one_by_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DEEPDISTILL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DEEPDISTILL_LAKE", raising=False)
    (tmp_path / "rows.jsonl").write_bytes(lines(GOOD, OTHER, b'{"question": "q?", "answer": 4}'))
    values = small_digits()
    options = {"path": str(tmp_path / "rows.jsonl"), "mapping": MAPPING}
    values["sources"] = {"mine": {"category": "math", "license": "CC0-1.0", "reader": "file", "options": options}}
    recipe_file = tmp_path / "mine.yaml"
    lake = Lake(root=str(tmp_path / "home" / "digits" / "lake"))

    def materialize():
        recipe_file.write_text(json.dumps(values))
        recipe = load_recipe(str(recipe_file))
        return dg.materialize(
            build_assets(recipe, Partitions.of(recipe)),
            selection=["raw_queries"],
            partition_key="mine",
            resources=resources(lake),
            raise_on_error=False,
        )

    assert not materialize().success
    assert read_quarantine(lake, ["mine"], "type").height == 1 and read_quarantine(lake, ["mine"], "null").is_empty()
    recipe, mended = str(recipe_file), str(tmp_path / "mended.jsonl")
    assert main(["quarantine", "mine", "--recipe", recipe]) == OK
    assert "type:answer" in capsys.readouterr().out
    assert main(["quarantine", "--recipe", recipe, "--reason", "type:answer", "--to", mended]) == OK
    line = json.loads((tmp_path / "mended.jsonl").read_text())
    assert line["row"] == {"question": "q?", "answer": 4}
    line["row"]["answer"] = "4"
    (tmp_path / "mended.jsonl").write_text(json.dumps(line))
    values["sources"]["mine"]["corrections"] = mended
    result = materialize()
    assert result.success and lake.read_table("raw_queries/partition=mine/data.parquet").height == 3
    assert result.asset_materializations_for_node("raw_queries")[0].metadata["corrections_used"].value == 1
    assert lake.read_table(quarantine_path("mine")).is_empty()


def test_a_new_or_replaced_file_makes_its_source_stale(tmp_path):
    options = {"path": str(tmp_path / "*.jsonl")}
    (tmp_path / "a.jsonl").write_bytes(lines(GOOD))
    stamps = [input_stamp("file", options, None)]
    (tmp_path / "b.jsonl").write_bytes(lines(OTHER))
    stamps.append(input_stamp("file", options, None))
    (tmp_path / "a.jsonl").write_bytes(lines(OTHER, OTHER))
    stamps += [input_stamp("file", options, None), input_stamp("file", options, str(tmp_path / "a.jsonl"))]
    assert len({json.dumps(stamp) for stamp in stamps}) == 4


def test_blocks_do_not_change_what_is_kept(tmp_path, monkeypatch):
    chance = random.Random(3)
    rows = []
    for number in range(400):
        own_id, text = chance.choice([None, chance.randrange(150)]), chance.randrange(120)
        row = {"question": f"q{text}", "answer": str(text % 7)} | ({"id": str(own_id)} if own_id is not None else {})
        rows.append(b"{torn" if number % 50 == 0 else json.dumps(row).encode())
    (tmp_path / "rows.jsonl").write_bytes(lines(*rows))
    whole = ingested(tmp_path / "rows.jsonl")
    monkeypatch.setattr(ingestion, "BLOCK", 7)
    parts = ingested(tmp_path / "rows.jsonl")
    assert len(parts.result.parts) > 30 and len(whole.result.parts) == 1
    assert parts.result.kept.collect().equals(whole.result.kept.collect())
    assert parts.result.dropped.equals(whole.result.dropped)
    assert parts.quarantine.collect().equals(whole.quarantine.collect())
    kept = whole.result.kept.collect()
    owners = {}
    for line in rows:
        if line != b"{torn":
            row = json.loads(line)
            owners.setdefault(row.get("id"), set()).add(row["question"])
    contradicted = {own_id for own_id, texts in owners.items() if own_id is not None and len(texts) > 1}
    assert kept["query_text"].is_unique().all()
    assert not {json.loads(text)["own_id"] for text in kept["metadata"]} & contradicted


def test_the_recipe_names_its_corrections():
    values = small_digits()
    values["sources"]["digits-1"]["corrections"] = "/nowhere/mended.jsonl"
    recipe = Recipe.model_validate(values)
    result = dg.materialize(
        build_assets(recipe, Partitions.of(recipe)),
        selection=["raw_queries"],
        partition_key="digits-1",
        resources=resources(Lake(root="/nowhere")),
        raise_on_error=False,
    )
    assert "mended.jsonl: no such file" in str(result.failure_data_for_node("raw_queries").error)
