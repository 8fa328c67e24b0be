import itertools
import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepdistill_assets.evaluation.metrics import (
    benchmark_scores,
    bootstrap,
    instruction_accuracies,
    majority_at_k,
    paired_difference,
    pass_at_k,
)
from deepdistill_assets.tables import BENCHMARK_RESPONSE, conform
from deepdistill_resources.errors import EvaluationError


def responses(table, checkpoint="c", benchmark="b", **columns):
    """`table` maps problem to a list of (answer, passed); passed None is unverifiable."""
    rows = [
        {
            "response_id": f"{problem}-{index}",
            "problem_id": problem,
            "benchmark": benchmark,
            "checkpoint": checkpoint,
            "sample_index": index,
            "answer": answer,
            "passed": passed,
            "has_format": answer is not None,
            "status": "ok" if answer is not None else "truncated",
            "completion_tokens": 10,
            "verdict": {True: "passed", False: "failed", None: "unverifiable"}[passed],
        }
        for problem, samples in table.items()
        for index, (answer, passed) in enumerate(samples)
    ]
    return conform(pl.DataFrame(rows, infer_schema_length=None), BENCHMARK_RESPONSE).with_columns(**columns)


TABLE = {
    # 4 of 4; majority 7 is right
    "p1": [("7", True), ("7", True), ("7", True), ("7", True)],
    # 2 of 4; 3 (right) and 5 (wrong) tie
    "p2": [("3", True), ("5", False), ("3", True), ("5", False)],
    # 1 of 4; 2 (wrong) wins, one unreadable answer
    "p3": [("1", True), ("2", False), ("2", False), (None, False)],
    # 0 of 4, none readable
    "p4": [(None, False)] * 4,
}


def values(frame):
    return dict(zip(frame["metric"], frame["value"], strict=True))


def test_a_table_computed_by_hand():
    found = values(benchmark_scores(responses(TABLE), "b", "c", 4, 500, 0))
    assert found["avg@4"] == pytest.approx((1 + 0.5 + 0.25 + 0) / 4)
    assert found["pass@4"] == pytest.approx(3 / 4)
    assert found["maj@4"] == pytest.approx((1 + 0.5 + 0 + 0) / 4)
    # runs: 3/4, 1/4, 2/4, 1/4
    assert found["standard_deviation_over_runs"] == pytest.approx(np.std([0.75, 0.25, 0.5, 0.25], ddof=1))
    assert found["stop_ratio"] == pytest.approx(11 / 16)
    assert found["truncated_share"] == found["unparsable_share"] == pytest.approx(5 / 16)
    assert found["format_share"] == pytest.approx(11 / 16)
    assert found["mean_tokens"] == 10


def test_programs_are_not_voted_on_and_one_sample_has_no_pass_at_k():
    assert "maj@4" not in values(benchmark_scores(responses(TABLE), "b", "c", 4, 10, 0, votes=False))
    one = {problem: samples[:1] for problem, samples in TABLE.items()}
    found = values(benchmark_scores(responses(one), "b", "c", 1, 10, 0))
    assert {"pass@1", "maj@1", "standard_deviation_over_runs"}.isdisjoint(found)


def test_a_missing_sample_is_an_error_that_names_it():
    short = responses(TABLE).filter(pl.col("response_id") != "p3-2")
    with pytest.raises(EvaluationError, match=r"1 problems lack samples: p3 \(3 of 4\)"):
        benchmark_scores(short, "b", "c", 4, 10, 0)


def test_an_unverifiable_problem_is_left_out_and_counted():
    table = {**TABLE, "p5": [("x", None)] * 4}
    frame = benchmark_scores(responses(table), "b", "c", 4, 10, 0)
    assert values(frame)["unverifiable_problems"] == 1
    assert values(frame)["avg@4"] == pytest.approx(1.75 / 4)
    nothing = benchmark_scores(responses({"p5": [("x", None)] * 4}), "b", "c", 4, 10, 0)
    assert nothing["metric"].to_list() == ["unverifiable_problems"]


@given(n=st.integers(1, 9), data=st.data())
def test_pass_at_k_is_the_mean_over_all_choices_of_k_samples(n, data):
    correct, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    outcomes = [index < correct for index in range(n)]
    choices = list(itertools.combinations(outcomes, k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(any(choice) for choice in choices) / len(choices))


def test_pass_at_more_samples_than_there_are_is_an_error():
    with pytest.raises(EvaluationError, match="pass@8 needs at least 8"):
        pass_at_k(4, 4, 8)


@given(st.lists(st.sampled_from(["a", "b", None]), min_size=1, max_size=9))
def test_majority_is_between_zero_and_one_and_blind_to_order(answers):
    passed = [answer == "a" for answer in answers]
    score = majority_at_k(answers, passed)
    assert score in (0.0, 0.5, 1.0)
    assert majority_at_k(answers[::-1], passed[::-1]) == score


def test_the_interval_is_over_problems_not_samples():
    # 20 problems, all 50 samples of one problem agree: the interval is as wide as for 20 samples.
    accuracy = np.array([1.0] * 10 + [0.0] * 10)
    estimate = bootstrap(accuracy, 4000, 0)
    assert estimate.value == 0.5
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * 0.5 / 20**0.5, abs=0.05)
    assert bootstrap(accuracy, 500, 7) == bootstrap(accuracy, 500, 7)


def test_a_paired_difference_is_sharper_than_two_intervals():
    rng = np.random.default_rng(0)
    hard = rng.random(200) < 0.5
    base = responses({f"p{i:03}": [("x", bool(h))] for i, h in enumerate(hard)})
    better = responses({f"p{i:03}": [("x", bool(h) or i % 10 == 0)] for i, h in enumerate(hard)})
    paired = paired_difference(better, base, 2000, 0)
    assert 0 < paired.low < paired.value < paired.high
    assert paired.value == pytest.approx((hard | (np.arange(200) % 10 == 0)).mean() - hard.mean())
    with pytest.raises(EvaluationError, match="same problems"):
        paired_difference(better.filter(pl.col("problem_id") != "p001"), base, 10, 0)


def test_a_problem_without_any_response_is_missing_too():
    with pytest.raises(EvaluationError, match=r"1 problems lack samples: p9 \(0 of 4\)"):
        benchmark_scores(responses(TABLE), "b", "c", 4, 10, 0, problem_ids=[*TABLE, "p9"])


def test_instruction_following_by_prompt_and_by_instruction_strict_and_loose():
    outcomes = {  # problem -> strictly, loosely followed
        "p1": ([True, True], [True, True]),
        "p2": ([True, False, False], [True, True, True]),
        "p3": ([False], [False]),
    }
    evidence = [
        json.dumps({"strict": dict(enumerate(strict)), "loose_outcomes": dict(enumerate(loose))})
        for strict, loose in outcomes.values()
    ]
    table = {problem: [("x", all(strict))] for problem, (strict, _) in outcomes.items()}
    found = values(benchmark_scores(responses(table).with_columns(evidence=pl.Series(evidence)), "b", "c", 1, 500, 0))
    assert found["avg@1"] == found["prompt_strict"] == pytest.approx(1 / 3)
    assert found["prompt_loose"] == pytest.approx(2 / 3)
    assert found["instruction_strict"] == pytest.approx(3 / 6)
    assert found["instruction_loose"] == pytest.approx(5 / 6)
    estimate = instruction_accuracies(pl.DataFrame({"problem_id": [*table], "evidence": evidence}), 500, 0)
    assert estimate["instruction_strict"].low < 0.5 < estimate["instruction_strict"].high


def test_a_truncated_response_follows_none_of_its_instructions():
    from deepdistill_resources.benchmarking import _with_outcomes
    from deepdistill_resources.verifiers.base import Verdict, VerificationRequest

    constraints = [{"instruction_id": "a:b", "kwargs": {}}, {"instruction_id": "c:d", "kwargs": {}}]
    request = VerificationRequest(
        "r", "instruction_following", "q", "", None, None, "truncated", constraints=constraints
    )
    verdict = _with_outcomes(Verdict("r", 0.0, 0.0, "failed", "status:truncated"), request)
    assert list(verdict.evidence["strict"].values()) == list(verdict.evidence["loose_outcomes"].values()) == [False] * 2


def test_equal_answers_that_are_written_differently_vote_together():
    halves = ["0.5", r"\frac{1}{2}", "1/2"]
    assert majority_at_k([*halves, "2", "2"], [True, True, True, False, False]) == 1.0
    assert majority_at_k([*halves, "2", "2"], [False, False, False, True, True]) == 0.0
    # What the verifier alone can tell: both are right, so they are one answer.
    assert majority_at_k(["x=3 or x=4", "{3,4}", "5", "6"], [True, True, False, False]) == 1.0
    assert majority_at_k(["5", "6", "7"], [True, False, False]) == pytest.approx(1 / 3)
