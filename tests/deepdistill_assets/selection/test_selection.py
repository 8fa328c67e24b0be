from itertools import pairwise

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from deepdistill_assets import seeded
from deepdistill_assets.recipe import StageOne, StageTwo
from deepdistill_assets.seeded import draws
from deepdistill_assets.selection import datasets
from deepdistill_assets.selection.algorithm_one import capless_stage_one, capped_stage_one, select_stage_one
from deepdistill_assets.selection.annealing import drawn_stage_two, kept_ids, ranked_stage_two, select_stage_two
from deepdistill_assets.selection.blocks import (
    counts_by_category,
    emptied_queries,
    select_in_blocks,
    selection_tables,
)
from deepdistill_assets.selection.candidates import SelectionError, candidates
from deepdistill_assets.selection.datasets import make_dataset

THRESHOLDS = {
    "math": 0.99,
    "code": 0.99,
    "science": 4.99,
    "instruction_following": 0.99,
    "multi_turn": 0.7,
    "other": 0.7,
}
FULL = {"science": 5.0}


def table(queries, teacher="r1", **columns):
    """Make candidate rows from {query_id: (category, scores)}; grades follow from the scores."""
    rows = []
    for query, (category, scores) in queries.items():
        mean = sum(scores) / len(scores)
        std = (sum((x - mean) ** 2 for x in scores) / len(scores)) ** 0.5 if len(set(scores)) > 1 else 0.0
        for index, score in enumerate(scores):
            rows.append(
                {
                    "response_id": f"{query}-{index}",
                    "query_id": query,
                    "source": "s",
                    "teacher": teacher,
                    "category": category,
                    "verify_score": float(score),
                    "verify_score_normalised": score / FULL.get(category, 1.0),
                    "cutoff": THRESHOLDS[category],
                    "passed": score > columns.get("cutoff", THRESHOLDS[category]),
                    "verdict": "passed",
                    "quality_keep": True,
                    "drop_reason": None,
                    "n": len(scores),
                    "pass_rate": sum(x > THRESHOLDS[category] for x in scores) / len(scores),
                    "mean": mean,
                    "std": std,
                    "cv": std / mean if mean else None,
                    "max_score": float(max(scores)),
                    "grade_status": "graded",
                }
                | columns
            )
    schema = {"drop_reason": pl.String, "cv": pl.Float64}
    return pl.DataFrame(rows, schema_overrides=schema, infer_schema_length=None).sort("response_id")


def stage_one(rows, seed=0, **options):
    return select_stage_one(rows, StageOne(teacher="r1", **options), THRESHOLDS, seed)


def reasons(decisions):
    return dict(zip(decisions["response_id"], decisions["reason"], strict=True))


def of(category, scores, **options):
    return [reason for _, reason in sorted(reasons(stage_one(table({"q": (category, scores)}), **options)).items())]


def test_challenging_queries_keep_only_passing_responses():
    assert of("math", [1, 0, 1, 0]) == ["kept_challenging", "not_passing", "kept_challenging", "not_passing"]


def test_queries_never_solved_are_dropped():
    assert of("math", [0, 0, 0, 0]) == ["max_score_below_threshold"] * 4
    assert of("code", [0.5, 0.9, 0.99, 0]) == ["max_score_below_threshold"] * 4


def test_the_gate_is_the_cutoff_that_decided_who_passed():
    """A quantile or a judge's cut-off takes the place of the threshold (0.7)."""
    rows = table({"q": ("other", [0.6, 0.2, 0.5, 0.1])}, cutoff=0.5)
    kept = {"q-0": "kept_challenging", "q-1": "not_passing", "q-2": "not_passing", "q-3": "not_passing"}
    assert reasons(stage_one(rows)) == kept
    rows = table({"q": ("other", [0.8, 0.2])}, cutoff=0.8)
    assert set(reasons(stage_one(rows)).values()) == {"max_score_below_threshold"}
    assert set(reasons(stage_one(rows, gate="printed")).values()) == {"not_passing"}


def test_easy_queries_of_scored_categories_are_dropped():
    for category, full in (("math", 1), ("code", 1), ("science", 5), ("instruction_following", 1)):
        assert of(category, [full] * 4) == ["easy_dropped"] * 4


def test_easy_queries_of_chat_are_kept_by_one_coin_per_query():
    rows = table({f"q{index:04}": ("other", [0.9, 0.9, 0.91, 0.9]) for index in range(2000)})
    decided = stage_one(rows)
    per_query = decided.group_by("query_id").agg(pl.col("reason").n_unique(), pl.col("keep").first())
    assert per_query["reason"].max() == 1
    assert 0.45 < per_query["keep"].mean() < 0.55
    assert set(decided["reason"]) == {"kept_easy", "easy_coin"}


def test_the_coin_per_response_splits_queries():
    rows = table({f"q{index:04}": ("multi_turn", [0.9] * 4) for index in range(500)})
    decided = stage_one(rows, coin="response")
    assert decided.group_by("query_id").agg(pl.col("keep").n_unique())["keep"].max() == 2
    assert 0.45 < decided["keep"].mean() < 0.55


@pytest.mark.parametrize(("easy_keep", "second"), [("passing", "not_passing"), ("all", "kept_easy")])
def test_whether_easy_queries_keep_failing_responses(easy_keep, second):
    got = of("other", [0.72, 0.69, 0.72, 0.72], easy_keep=easy_keep, easy_keep_probability={"other": 1.0})
    assert got == ["kept_easy", second, "kept_easy", "kept_easy"]


def test_a_decision_shows_the_numbers_it_was_made_on():
    rows = table({"easy": ("other", [0.9, 0.9]), "mixed": ("science", [5.0, 2.5])})
    first = {row["query_id"]: row for row in stage_one(rows).iter_rows(named=True)}
    limits = [(row["max_score"], row["threshold"], row["cv_threshold"]) for row in first.values()]
    assert limits == [(0.9, 0.7, 0.05), (5.0, 4.99, 0.05)]
    assert (first["easy"]["coin"] < 0.5) == first["easy"]["keep"] and first["mixed"]["coin"] is None
    second = stage_two(rows).filter(pl.col("query_id") == "mixed").sort("response_id")
    assert second["max_score"].to_list() == [1.0, 1.0] and set(second["threshold"]) == {0.99}
    assert second["draw"].is_not_null().to_list() == [True, False]


@pytest.mark.parametrize(
    ("category", "scores"), [("other", [0.7, 0.1, 0.3, 0.2]), ("math", [0.99, 0, 0, 0]), ("science", [4.99, 1, 1, 1])]
)
def test_best_score_equal_to_the_threshold(category, scores):
    assert of(category, scores) == ["max_score_below_threshold"] * 4
    assert of(category, scores, gate="printed") == ["not_passing"] * 4


def test_a_cv_equal_to_its_threshold_is_easy():
    row = table({"q": ("math", [1, 1, 1, 0])})
    cv = row["cv"][0]
    assert set(reasons(stage_one(row, cv_thresholds={"math": cv})).values()) == {"easy_dropped"}
    assert "kept_challenging" in reasons(stage_one(row, cv_thresholds={"math": cv - 1e-9})).values()


def test_other_teachers_and_queries_without_a_grade_take_no_part():
    both = pl.concat([table({"q": ("math", [1, 0])}), table({"p": ("math", [1, 0])}, teacher="7b")])
    got = reasons(stage_one(both))
    assert got["p-0"] == got["p-1"] == "not_training_teacher"
    assert got["q-0"] == "kept_challenging"
    for status in ("incomplete", "unverifiable", "nothing_counted"):
        assert set(reasons(stage_one(table({"q": ("math", [1, 0])}, grade_status=status))).values()) == {status}


def test_quality_drops_are_not_trained_on():
    rows = table({"q": ("math", [1, 0, 1])}).with_columns(
        quality_keep=pl.col("response_id") != "q-0",
        drop_reason=pl.when(pl.col("response_id") == "q-0").then(pl.lit("perplexity")),
    )
    assert reasons(stage_one(rows)) == {"q-0": "quality:perplexity", "q-1": "not_passing", "q-2": "kept_challenging"}


def test_caps_draw_by_seed():
    rows = table({f"q{index}": ("math", [1, 1, 1, 0]) for index in range(20)})
    capped = stage_one(rows, max_responses_per_query=2, category_caps={"math": 25})
    assert capped["keep"].sum() == 25
    assert capped.filter("keep").group_by("query_id").len()["len"].max() == 2
    counts = dict(capped["reason"].value_counts().iter_rows())
    assert counts == {"kept_challenging": 25, "category_cap": 15, "responses_per_query_cap": 20, "not_passing": 20}
    assert capped.filter("keep")["rank"].sort().to_list() == list(range(1, 26))
    assert not capped["keep"].equals(stage_one(rows, seed=1, category_caps={"math": 25})["keep"])


def test_every_response_gets_one_decision():
    rows = table({"a": ("math", [1, 0]), "b": ("other", [0.9, 0.9]), "c": ("code", [0, 0])})
    decided = stage_one(rows)
    assert decided["response_id"].to_list() == rows["response_id"].to_list()
    assert decided["reason"].null_count() == 0
    assert set(decided["stage"]) == {"stage1"}


QUERIES = st.dictionaries(
    st.sampled_from([f"q{index}" for index in range(8)]),
    st.tuples(
        st.sampled_from(["math", "science", "other", "multi_turn"]),
        st.lists(st.sampled_from([0.0, 0.7, 0.71, 0.99, 1.0, 4.99, 5.0]), min_size=1, max_size=4),
    ),
    min_size=1,
)
OPTIONS = st.fixed_dictionaries(
    {
        "gate": st.sampled_from(["strict", "printed"]),
        "coin": st.sampled_from(["query", "response"]),
        "easy_keep": st.sampled_from(["passing", "all"]),
        "category_caps": st.sampled_from([{}, {"other": 3, "math": 1}]),
        "max_responses_per_query": st.sampled_from([None, 1, 2]),
    }
)


def in_blocks(rows, first, second, seed, cuts, block_rows):
    """Select as the assets do, from scans over tables that are cut at `cuts`."""

    def scan(table):
        return pl.concat([table[start:end] for start, end in pairwise([0, *cuts, rows.height])]).lazy()

    tokens = rows.select("query_id", "response_id", completion_tokens=pl.lit(7))
    quality = rows.with_columns(pl.col("quality_keep").alias("keep"))
    grades = rows.unique(["query_id", "teacher"]).lazy()
    tables = selection_tables(grades, scan(rows), quality.reverse().lazy(), scan(tokens))
    one = select_in_blocks(
        tables,
        lambda found, _: capless_stage_one(found, first, THRESHOLDS, seed),
        lambda found: capped_stage_one(found, first),
        block_rows,
    )
    two = select_in_blocks(
        tables | {"stage1": one.decisions.scan().select("query_id", "response_id", "keep")},
        lambda found, block: drawn_stage_two(found, kept_ids(block["stage1"]), second, first, seed),
        lambda found: ranked_stage_two(found, second),
        block_rows,
    )
    return one, two


@settings(max_examples=12, deadline=None)
@given(QUERIES, OPTIONS, st.integers(0, 3), st.integers(6, 20), st.booleans(), st.randoms(use_true_random=False))
def test_selection_in_blocks_is_the_selection_in_memory(queries, options, seed, block_rows, equal_draws, random):
    rows = pl.concat([table(queries), table({f"w-{name}": value for name, value in queries.items()}, teacher="7b")])
    first, second = StageOne(teacher="r1", **options), StageTwo(threshold=0.7, top_k={"other": 1, "math": 2})
    order = random.sample(range(rows.height), rows.height)
    cuts = sorted(random.randint(0, rows.height) for _ in range(3))
    with pytest.MonkeyPatch.context() as patch:
        if equal_draws:  # ties, which names settle
            patch.setattr(seeded, "draws", lambda ids, *_: pl.Series("draw", [0.25] * len(ids), pl.Float64))
        kept = select_stage_one(rows.sort("response_id"), first, THRESHOLDS, seed)
        annealed = select_stage_two(rows.sort("response_id"), kept, second, first, seed)
        one, two = in_blocks(rows[order], first, second, seed, cuts, block_rows)
    for found, expected in ((one, kept), (two, annealed)):
        decisions = found.decisions.scan().collect()
        assert_frame_equal(decisions, expected)
        assert (found.responses, found.distinct, found.decisions.rows) == (rows.height,) * 3
        assert found.emptied == emptied_queries(expected)
        assert dict(found.reasons) == dict(expected["reason"].value_counts().iter_rows())
        counts = counts_by_category(expected.with_columns(completion_tokens=pl.lit(7))).sort("category")
        assert_frame_equal(found.by_category, counts, check_dtypes=False)
        assert found.by_category["kept_tokens"].sum() == 7 * expected["keep"].sum()


def dataset_tables(rows):
    texts = rows.select("response_id", think="query_id", answer=pl.col("response_id"), completion_tokens=pl.lit(7))
    asked = pl.concat_list(pl.struct(role=pl.lit("user"), content=pl.col("query_id")))
    return texts, rows.unique("query_id").select("query_id", messages=asked)


@settings(max_examples=20, deadline=None)
@given(QUERIES, st.integers(1, 9), st.integers(1, 400), st.randoms(use_true_random=False))
def test_a_dataset_is_the_same_however_its_texts_are_put_aside(queries, range_rows, batch_bytes, random):
    rows = table(queries)
    kept = stage_one(rows, easy_keep_probability={"other": 0.5, "math": 1.0})
    texts, messages = dataset_tables(rows)
    in_one = make_dataset(kept.lazy(), texts.lazy(), messages.lazy(), 0.3, 1)
    whole = in_one.scan().collect()
    assert whole["example_id"].to_list() == kept.filter("keep")["response_id"].to_list()
    for query, example, response in whole.select("query_id", "example_id", "response").iter_rows():
        assert response == f"<think>{query}</think><answer>{example}</answer>"
    order = random.sample(range(rows.height), rows.height)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "BATCH_BYTES", batch_bytes)
        patch.setattr(datasets, "READ_ROWS", 2)
        parts = make_dataset(kept.lazy(), texts[order].lazy(), messages.reverse().lazy(), 0.3, 1, range_rows)
    assert all(part.height <= range_rows for part in parts.frames())
    assert_frame_equal(parts.scan().collect(), whole)


@pytest.mark.parametrize("missing", ["texts", "messages"])
def test_a_selected_response_without_its_texts_is_refused(missing):
    rows = table({"q1": ("other", [0.9, 0.1]), "q2": ("other", [0.9, 0.1])})
    tables = dict(zip(("texts", "messages"), dataset_tables(rows), strict=True))
    tables[missing] = tables[missing].filter(pl.col("query_id" if missing == "messages" else "think") != "q2")
    with pytest.raises(ValueError, match="2 responses are selected, but 1 from q1-0 on are not"):
        make_dataset(stage_one(rows).lazy(), tables["texts"].lazy(), tables["messages"].lazy(), 0.3, 1)


@settings(max_examples=60, deadline=None)
@given(QUERIES, OPTIONS, st.integers(0, 3), st.randoms(use_true_random=False))
def test_row_order_and_partitioning_never_change_a_decision(queries, options, seed, random):
    rows = table(queries)
    verified = rows.with_columns(pl.lit("ok").alias("status"))
    quality = rows.select("response_id", pl.col("quality_keep").alias("keep"), "drop_reason")
    grades = rows.select(
        "query_id", "teacher", "n", "pass_rate", "mean", "std", "cv", "max_score", "grade_status"
    ).unique("query_id")

    def decide(order, cut):
        parts = [verified[order[:cut]], verified[order[cut:]]]
        shuffled = candidates(grades.reverse(), pl.concat(parts), quality[order[::-1]])
        first = stage_one(shuffled, seed, **options)
        second = select_stage_two(
            shuffled, first, StageTwo(threshold=0.7, top_k={"other": 1}), StageOne(teacher="r1"), seed
        )
        return first, second

    order = list(range(rows.height))
    shuffled = random.sample(order, len(order))
    one, other = decide(order, 0), decide(shuffled, random.randint(0, len(order)))
    assert one[0].equals(other[0])
    assert one[1].equals(other[1])
    uncapped = stage_one(rows, seed, **options | {"category_caps": {}})
    if options["gate"] == "strict" and options["coin"] == "query":
        chosen = uncapped.filter(pl.col("reason").is_in(["kept_challenging", "kept_easy", "not_passing"]))
        assert chosen.group_by("query_id").agg(pl.col("keep").any())["keep"].all()


def test_other_queries_never_change_a_coin():
    few = stage_one(table({f"q{index}": ("other", [0.9] * 2) for index in range(10)}))
    many = stage_one(table({f"q{index}": ("other", [0.9] * 2) for index in range(40)}))
    assert few.equals(many.filter(pl.col("query_id").is_in(few["query_id"].implode())))


def test_draws_are_fixed_forever():
    # A changed value would silently change every published selection.
    assert [round(value, 6) for value in draws(pl.Series(["a", "b"]), 0, "stage1 easy")] == PINNED
    assert draws(pl.Series(["a"]), 0, "x")[0] != draws(pl.Series(["a"]), 1, "x")[0]


PINNED = [0.198842, 0.611606]


def stage_two(rows, seed=0, first=None, **options):
    first = first or StageOne(teacher="r1")
    before = select_stage_one(rows, first, THRESHOLDS, seed)
    return select_stage_two(rows, before, StageTwo(**options), first, seed)


def test_annealing_takes_one_passing_response_of_the_highest_cv():
    rows = table(
        {"a": ("math", [1, 0, 0, 0]), "b": ("math", [1, 1, 0, 0]), "c": ("math", [1, 1, 1, 0]), "d": ("math", [1] * 4)}
    )
    decided = stage_two(rows, top_k={"math": 2})
    kept = decided.filter("keep").sort("rank")
    assert kept["query_id"].to_list() == ["a", "b"]
    assert kept["rank"].to_list() == [1, 2]
    assert kept["verify_score"].to_list() == [1, 1]
    got = reasons(decided)
    assert got["d-0"] == "cv_below_threshold"
    assert got["c-0"] == "below_top_k"
    assert got["a-1"] == "not_passing"
    assert sorted([got["b-0"], got["b-1"]]) == ["kept_annealing", "not_drawn"]


def test_annealing_normalises_science():
    rows = table({"a": ("science", [5, 5, 1, 1]), "b": ("science", [4.9, 1, 1, 1])})
    got = reasons(stage_two(rows))
    assert sorted([got["a-0"], got["a-1"]]) == ["kept_annealing", "not_drawn"]
    assert {got[f"b-{index}"] for index in range(4)} == {"max_score_below_threshold"}


def test_annealing_draws_only_from_stage_one():
    rows = table({"a": ("math", [1, 0]), "b": ("math", [1, 0])})
    got = stage_two(rows, first=StageOne(teacher="r1", category_caps={"math": 1}))
    assert sorted(got.filter(pl.col("verify_score") == 1)["reason"]) == ["kept_annealing", "not_in_stage1"]


def test_annealing_has_its_own_cv_threshold():
    rows = table({"a": ("code", [1.0, 0.9, 0.9, 0.9]), "b": ("code", [1.0, 0.1, 0.1, 0.1])})
    strict = stage_two(rows, first=StageOne(teacher="r1", cv_thresholds={"code": 0.01}), cv_thresholds={"code": 0.5})
    assert strict.filter("keep")["query_id"].to_list() == ["b"]


def test_contradicting_tables_are_refused():
    rows = table({"q": ("math", [1, 0])})
    grades = rows.select("query_id", "teacher", "n", "pass_rate", "mean", "std", "cv", "max_score", "grade_status")
    quality = rows.select("response_id", pl.col("quality_keep").alias("keep"), "drop_reason")
    with pytest.raises(SelectionError, match="twice"):
        candidates(grades, rows, quality)
    with pytest.raises(SelectionError, match="q-1"):
        candidates(grades.unique(), rows, quality.head(1))
    with pytest.raises(SelectionError, match="difficulty_grades"):
        candidates(grades.clear(), rows, quality)
