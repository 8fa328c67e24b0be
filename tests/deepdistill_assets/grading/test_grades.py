import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepdistill_assets.grading.grades import grade
from deepdistill_assets.grading.levels import with_levels, with_spread
from deepdistill_assets.grading.runs import reduce_scores
from deepdistill_assets.scores import CountingRules, GradingError, counted_scores

EXAMPLES = {
    "A": [0.5] * 5,
    "B": [0.9, 0.1, 0.7, 0.3, 0.5],
    "C": [0.6, 0.8, 0.7, 0.7, 0.7],
    "D": [0.3, 0.5, 0.4, 0.4, 0.4],
}


def responses(rows):
    """Make verified and quality rows from dicts; defaults describe a clean response that passed."""
    default = {"query_id": "q", "teacher": "t", "status": "ok", "verdict": "passed", "verify_score": 1.0}
    default |= {"passed": True, "has_think": True, "has_answer": True, "keep": True}
    full = [default | {"response_id": f"r{index}"} | row for index, row in enumerate(rows)]
    schema = {"verify_score": pl.Float64, "passed": pl.Boolean, "verdict": pl.String}
    frame = pl.DataFrame(full, schema_overrides=schema, infer_schema_length=None)
    names = ["response_id", "query_id", "teacher", "status", "verdict", "verify_score", "passed"]
    return frame.select(names), frame.select("response_id", "has_think", "has_answer", "keep")


def queries(*ids):
    return pl.DataFrame({"query_id": list(ids), "source": "s", "category": "math"})


def grades_of(rows, ddof=0, passes=None, ids=("q",), teachers=("t",), **rules):
    per_teacher = len(rows) if passes is None else passes
    counting = CountingRules(passes=dict.fromkeys(teachers, per_teacher), **rules)
    return grade(queries(*ids), reduce_scores(counted_scores(*responses(rows), counting)), counting, ddof, 0.95)


def one(rows, **options):
    return grades_of(rows, **options).row(0, named=True)


@pytest.mark.parametrize(("ddof", "expected"), [(0, [0, 0.566, 0.090, 0.158]), (1, [0, 0.632, 0.101, 0.177])])
def test_the_papers_four_examples(ddof, expected):
    got = [one([{"verify_score": x, "passed": False} for x in scores], ddof=ddof)["cv"] for scores in EXAMPLES.values()]
    assert [round(value, 3) for value in got] == expected


def test_the_paper_prints_its_examples_with_the_sample_deviation():
    got = [one([{"verify_score": x} for x in scores], ddof=1)["cv"] for scores in EXAMPLES.values()]
    assert [round(value, 2) for value in got] == [0, 0.63, 0.10, 0.18]


@pytest.mark.parametrize(("ddof", "expected"), [(0, [1.732, 1.0, 0.577, 0]), (1, [2.0, 1.155, 0.667, 0])])
def test_the_binary_table(ddof, expected):
    got = [
        one([{"verify_score": float(i < k), "passed": i < k} for i in range(4)], ddof=ddof)["cv"] for k in range(1, 5)
    ]
    assert [round(value, 3) for value in got] == expected


def test_cv_does_not_depend_on_the_scale():
    scores = [5.0, 3.0, 4.0, 1.0]
    raw, normalised = one([{"verify_score": x} for x in scores]), one([{"verify_score": x / 5} for x in scores])
    assert raw["cv"] == pytest.approx(normalised["cv"])


FAILED = {"verdict": "failed", "verify_score": 0.25, "passed": False}
NULL = {"verify_score": None, "passed": False}


@pytest.mark.parametrize(
    ("second", "status", "n", "mean"),
    [
        ({}, "graded", 2, 1.0),
        (FAILED, "graded", 2, 0.625),
        ({"status": "truncated", "verdict": "failed", **NULL}, "graded", 2, 0.5),
        ({"status": "truncated"}, "graded", 2, 0.5),
        ({"status": "empty", "verdict": "failed", **NULL}, "graded", 2, 0.5),
        ({"status": "refused", "verdict": "failed", **NULL}, "graded", 2, 0.5),
        ({"status": "context_overflow", "verdict": "failed", **NULL}, "graded", 2, 0.5),
        ({"status": "truncated", "verdict": "unverifiable", **NULL}, "graded", 2, 0.5),
        ({"has_think": False, "keep": False}, "graded", 2, 0.5),
        ({"has_answer": False, "keep": False}, "graded", 2, 0.5),
        ({"verdict": "unverifiable", **NULL}, "unverifiable", 1, None),
        ({"verdict": "timeout", **NULL}, "graded", 2, 0.5),
        ({"verdict": "timeout", "verify_score": 0.0, "passed": False}, "graded", 2, 0.5),
        ({"verdict": "infra_error", **NULL}, "incomplete", 1, None),
        ({"verdict": None, **NULL}, "incomplete", 1, None),
        ({"status": "server_error", "verdict": None, **NULL}, "incomplete", 1, None),
        ({"keep": False}, "graded", 2, 1.0),
        ({"keep": False, **FAILED}, "graded", 2, 0.625),
    ],
)
def test_what_counts_row_by_row(second, status, n, mean):
    row = one([{}, second])
    assert (row["grade_status"], row["n"], row["mean"]) == (status, n, mean)
    if mean is None:
        assert row["pass_rate"] is row["cv"] is row["interval_low"] is None
        assert row["cv_null_reason"] == status


def test_a_response_not_generated_yet_leaves_the_grade_incomplete():
    assert one([{}, {}], passes=3)["grade_status"] == "incomplete"
    assert one([{"query_id": "other"}], passes=1)["grade_status"] == "incomplete"


def test_quality_drops_leave_n_in_the_other_reading_but_truncation_still_counts():
    rows = [{}, {"keep": False}, {"keep": False, "status": "truncated"}]
    row = one(rows, quality_drops_count=False)
    assert (row["n"], row["n_passed"], row["mean"]) == (2, 1, 0.5)
    assert one([{"keep": False}], quality_drops_count=False)["grade_status"] == "nothing_counted"


def test_recipes_without_think_or_answer_parts_count_the_score():
    assert one([{"has_think": False, "has_answer": False}], require_think=False, require_answer=False)["mean"] == 1.0


def test_early_stopping_is_marked_not_comparable():
    row = one([FAILED, {}], passes=5, early_stopping=True)
    assert (row["grade_status"], row["n"], row["pass_rate"]) == ("early_stopped", 2, 0.5)
    assert one([FAILED, FAILED], passes=5, early_stopping=True)["grade_status"] == "incomplete"


def test_null_cv_has_its_reason():
    zero = one([{"verify_score": 0.0, "passed": False}] * 4)
    assert (zero["cv"], zero["std"], zero["cv_null_reason"]) == (None, 0.0, "mean_is_zero")
    single = one([{}], ddof=1)
    assert (single["cv"], single["cv_null_reason"]) == (None, "single_response")
    assert one([{}, FAILED])["cv_null_reason"] is None


def test_interval_is_jeffreys_and_says_how_little_four_passes_are():
    rows = [{"passed": True}, {"passed": True}, FAILED, FAILED]
    row = one(rows)
    assert row["interval_low"] == pytest.approx(0.1226, abs=1e-3)
    assert row["interval_high"] == pytest.approx(0.8774, abs=1e-3)
    assert one([{}] * 4)["interval_high"] == 1.0
    assert one([FAILED] * 4)["interval_low"] == 0.0


@pytest.mark.parametrize("score", [None, float("nan"), float("inf"), -1.0])
def test_a_scored_response_without_a_usable_score_is_refused(score):
    with pytest.raises(GradingError, match="r1"):
        one([{}, {"verify_score": score}])


def test_tables_of_different_responses_are_refused():
    verified, quality = responses([{}, {}])
    with pytest.raises(GradingError, match="share only 1"):
        counted_scores(verified, quality.head(1), CountingRules({"t": 2}))
    with pytest.raises(GradingError, match="twice"):
        counted_scores(verified[[0, 0]], quality, CountingRules({"t": 2}))


def test_no_responses_and_no_teachers_are_tables_too():
    verified, quality = (frame.clear() for frame in responses([{}]))
    rules = CountingRules({"t": 4})
    empty = grade(queries("q"), reduce_scores(counted_scores(verified, quality, rules)), rules, 0, 0.95)
    assert empty["grade_status"].to_list() == ["incomplete"]
    nobody = CountingRules({})
    assert grade(queries("q"), reduce_scores(counted_scores(verified, quality, nobody)), nobody, 0, 0.95).is_empty()


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "query_id": st.sampled_from(["a", "b", "c"]),
            "teacher": st.sampled_from(["t", "u"]),
            "verify_score": st.sampled_from([0.0, 0.1, 0.7, 1.0, 4.99, 5.0]),
            "passed": st.booleans(),
            "verdict": st.sampled_from(["passed", "failed", "timeout", "unverifiable", "infra_error"]),
            "status": st.sampled_from(["ok", "ok", "truncated"]),
        }
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.randoms(use_true_random=False), st.integers(0, 1))
def test_row_order_never_changes_a_grade(rows, random, ddof):
    rows = [row | {"response_id": f"id{index}"} for index, row in enumerate(rows)]
    shuffled = random.sample(rows, len(rows))
    options = {"ddof": ddof, "passes": 2, "ids": ("a", "b", "c"), "teachers": ("t", "u")}
    if rows:
        first, second = grades_of(rows, **options), grades_of(shuffled, **options)
        exact = [name for name in first.columns if name not in ("mean", "std", "cv")]
        assert first.select(exact).equals(second.select(exact))
        for name in ("mean", "std", "cv"):
            assert first[name].fill_null(-1).to_list() == pytest.approx(second[name].fill_null(-1).to_list())


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_run_reduction_equals_a_group_by(rows):
    if not rows:
        return
    scores = counted_scores(*responses(rows), CountingRules({"t": 2, "u": 2}))
    got = reduce_scores(scores).sort("query_id", "teacher")
    counted = scores.filter("counted")
    expected = counted.group_by("query_id", "teacher").agg(
        pl.len().alias("n"), pl.col("score").mean().alias("mean"), pl.col("score").var(ddof=0).alias("variance")
    )
    both = got.filter(pl.col("n") > 0).join(expected, on=["query_id", "teacher"], suffix="_expected")
    assert both["n"].to_list() == both["n_expected"].to_list()
    assert both["mean"].to_list() == pytest.approx(both["mean_expected"].to_list())
    assert (both["squares"] / both["n"]).to_list() == pytest.approx(both["variance"].to_list(), abs=1e-12)
    assert got["responses"].sum() == len(rows)


@pytest.mark.parametrize(
    ("rates", "level", "reason"),
    [
        ([0.5, 1.0], "L1", None),
        ([0.5, 0.5], "L2", None),
        ([0.0, 0.5], "L2", None),
        ([0.0, 1.0], "L2", None),
        ([0.0, 0.0], None, "outside_levels"),
        ([1.0, 1.0], None, "outside_levels"),
        ([0.0, 0.0, 0.0], "L3", None),
        ([0.0, 0.0, 0.5], None, "outside_levels"),
        ([0.0, 0.0, 0.0, 0.0], None, "never_solved"),
        ([0.0, 0.0, 0.0, 0.25], "L3", None),
        ([0.5, None], None, "no_grade:t1"),
        ([0.5], None, "no_level_teachers"),
    ],
)
def test_levels_of_several_teachers(rates, level, reason):
    teachers = [f"t{index}" for index in range(len(rates))]
    grades = pl.DataFrame({"query_id": "q", "teacher": teachers, "pass_rate": rates}).with_columns(
        pl.lit(None, pl.String).alias("level"), pl.lit(None, pl.String).alias("level_null_reason")
    )
    got = with_levels(grades, teachers)
    assert got.columns == grades.columns
    assert got["level"].to_list() == [level] * len(rates)
    assert got["level_null_reason"].to_list() == [reason] * len(rates)


def test_a_level_teacher_that_never_saw_the_query_is_named():
    grades = pl.DataFrame(
        {"query_id": "q", "teacher": ["t0"], "pass_rate": [0.5], "level": None, "level_null_reason": None}
    )
    assert with_levels(grades, ["t0", "t9"])["level_null_reason"].to_list() == ["no_grade:t9"]


def test_easiest_and_hardest_teacher_and_how_far_they_differ():
    weak = [{"query_id": "a", "teacher": "weak", **FAILED}] * 2
    strong = [{"query_id": "a", "teacher": "strong"}, {"query_id": "a", "teacher": "strong", **FAILED}]
    alone = [{"query_id": "b", "teacher": "strong"}] * 2
    graded = with_spread(grades_of([*weak, *strong, *alone], passes=2, ids=("a", "b"), teachers=("weak", "strong")))
    columns = ("easiest_teacher", "hardest_teacher", "teacher_disagreement")
    assert graded.filter(pl.col("query_id") == "a").select(columns).unique().rows() == [("strong", "weak", 0.5)]
    assert graded.filter(pl.col("query_id") == "b").select(columns).unique().rows() == [(None, None, None)]
    one_teacher = grades_of([{}])
    assert with_spread(one_teacher).equals(one_teacher)
