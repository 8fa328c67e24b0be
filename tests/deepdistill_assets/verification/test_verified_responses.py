"""Every response gets exactly one row; the recipe's strict threshold decides; broken infrastructure writes nothing."""

import json
import runpy
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepdistill_assets import tables
from deepdistill_assets.partitions import Partitions
from deepdistill_assets.recipe import CATEGORIES, Recipe, Verification
from deepdistill_assets.verification import verdicts as verdicts_module
from deepdistill_assets.verification.assets import build_assets
from deepdistill_assets.verification.verdicts import (
    Cutoffs,
    Run,
    VerificationError,
    cutoffs,
    requests,
    require_working_infrastructure,
    score_histogram,
    table,
    verify,
)
from deepdistill_resources.compute import LocalCompute, Outcome
from deepdistill_resources.judges import SAME_ANSWER, Prompt
from deepdistill_resources.lake import Lake
from deepdistill_resources.verifiers.base import Verdict, VerificationRequest, Verifier
from deepdistill_resources.verifiers.suite import SuiteVerifier, VerifierSuite

_JUDGES = Path(__file__).parents[2] / "deepdistill_resources" / "judges"
judge_that = runpy.run_path(str(_JUDGES / "scripted.py"))["judge_that"]
RECIPE = Recipe.model_validate(
    {
        "name": "small",
        "title": "t",
        "description": "d",
        "models": {"m": {"kind": "served", "license": "x", "name": "m", "base_url": "http://x"}},
        "sources": {
            name: {"category": "math", "license": "x", "reader": "jsonl", "options": {}} for name in ("full", "empty")
        },
        "teachers": {"t": {"model": "m"}},
        "selection": {"stage1": {"teacher": "t"}},
        "students": {"s": {"model": "m"}},
        "training": {"stage1": {"learning_rate": 1e-4, "epochs": 1}},
        "evaluation": {"benchmarks": {}},
        "verification": {"seconds_per_test": 1.0},
    }
)
CALL = {"style": "call", "entry_point": "add", "inputs": [[1, 2], [3, 4]], "outputs": [3, 7]}
QUERIES = [
    {"query_id": "m", "category": "math", "reference_answer": "42"},
    {"query_id": "c", "category": "code", "test_cases": json.dumps(CALL)},
    {"query_id": "s", "category": "science", "reference_answer": "B", "options": ["iron", "gold"]},
    {
        "query_id": "i",
        "category": "instruction_following",
        "constraints": json.dumps([{"instruction_id": "punctuation:no_comma", "kwargs": {}}]),
    },
    {"query_id": "o", "category": "other"},
]
# (query, answer, status) -> verdict, verify_score, passed
CASES = [
    ("m", "42", "ok", "passed", 1.0, True),
    ("m", "41", "ok", "failed", 0.0, False),
    ("m", None, "truncated", "failed", 0.0, False),
    ("m", None, "ok", "failed", 0.0, False),
    ("c", "```python\ndef add(a, b):\n    return a + b\n```", "ok", "passed", 1.0, True),
    ("c", "```python\ndef add(a, b):\n    return 3\n```", "ok", "failed", 0.5, False),
    ("s", "gold", "ok", "passed", 5.0, True),
    ("s", "(A)", "ok", "failed", 0.0, False),
    ("i", "no commas here", "ok", "passed", 1.0, True),
    ("o", "a chat answer", "ok", "unverifiable", None, False),
]


def query_table() -> pl.DataFrame:
    rows = [{"source": "full", "query_text": "q", **row} for row in QUERIES]
    return tables.conform(pl.DataFrame(rows, infer_schema_length=None), tables.QUERY)


def response_table() -> pl.DataFrame:
    categories = {row["query_id"]: row["category"] for row in QUERIES}
    rows = [
        {
            "response_id": f"r{index}",
            "query_id": query,
            "source": "full",
            "category": categories[query],
            "teacher": "t",
            "answer": answer,
            "text": answer or "",
            "status": status,
        }
        for index, (query, answer, status, *_) in enumerate(CASES)
    ]
    return tables.conform(pl.DataFrame(rows, infer_schema_length=None), tables.RESPONSE)


class _Memory(dg.InMemoryIOManager):
    """Hands out fixed upstream tables; an empty source has empty tables."""

    def load_input(self, context: dg.InputContext) -> pl.DataFrame:
        if context.asset_key.path[-1] == "verified_responses":
            return super().load_input(context)
        full = "full" in context.asset_partition_keys[0]
        found = {"responses": response_table, "distillation_queries": query_table}[context.asset_key.path[-1]]()
        return found if full else found.clear()


def upstream(recipe: Recipe) -> list[dg.AssetsDefinition]:
    partitions = Partitions.of(recipe)

    @dg.asset(partitions_def=partitions.source_teacher, io_manager_key="io_manager")
    def responses() -> None: ...

    @dg.asset(partitions_def=partitions.source, io_manager_key="io_manager")
    def distillation_queries() -> None: ...

    return [responses, distillation_queries]


Materialize = Callable[..., dg.ExecuteInProcessResult]


@pytest.fixture
def materialize(tmp_path: Path) -> Materialize:
    """Materialize verified_responses; several times on the same lake."""
    lake = Lake(root=str(tmp_path / "lake"))

    def run(source: str, suite: VerifierSuite, recipe: Recipe = RECIPE, also: str = "") -> dg.ExecuteInProcessResult:
        return dg.materialize(
            [*upstream(recipe), *build_assets(recipe, Partitions.of(recipe))],
            selection=["verified_responses", *([also] if also else [])],
            partition_key=dg.MultiPartitionKey({"source": source, "teacher": "t"}),
            resources={"io_manager": _Memory(), "verifier_suite": suite, "lake": lake, "compute": LocalCompute()},
            raise_on_error=False,
        )

    return run


def facts(result: dg.ExecuteInProcessResult, asset: str = "verified_responses") -> dict:
    metadata = result.asset_materializations_for_node(asset)[0].metadata
    return {name: value.value for name, value in metadata.items()}


def with_verification(**changes: object) -> Recipe:
    values = RECIPE.model_dump(mode="json")
    return Recipe.model_validate(values | {"verification": values["verification"] | changes})


def test_every_category_gets_its_verdict_and_the_checks_pass(materialize: Materialize) -> None:
    result = materialize("full", VerifierSuite(workers=1))
    assert result.success
    rows = result.output_for_node("verified_responses")
    assert rows.schema == pl.Schema(tables.VERIFICATION)
    assert rows["response_id"].to_list() == [f"r{index}" for index in range(len(CASES))]
    found = rows.select("verdict", "verify_score", "passed").rows()
    assert found == [tuple(case[3:]) for case in CASES]
    assert rows["verify_score_normalised"].to_list()[6] == 1.0  # science: 5 of 5
    assert all(check.passed for check in result.get_asset_check_evaluations())
    assert {c.check_name for c in result.get_asset_check_evaluations()} == {
        "infra_error_rate",
        "canaries",
        "every_response_verified",
    }
    metadata = result.asset_materializations_for_node("verified_responses")[0].metadata
    assert metadata["sandbox_tier"].value in ("nsjail", "bubblewrap", "bubblewrap-noproc", "landlock")
    assert metadata["canaries_run"].value >= 6
    assert "svg" in metadata["score_histogram"].value


def test_what_was_verified_is_not_verified_again(materialize: Materialize) -> None:
    first, second = (materialize("full", VerifierSuite(workers=1)) for _ in range(2))
    assert second.output_for_node("verified_responses").equals(first.output_for_node("verified_responses"))
    assert (facts(first)["verified_new"], facts(first)["verified_reused"]) == (len(CASES), 0)
    assert facts(second)["verified_new"] == 1  # nothing could be said of the chat answer: it may be another day
    assert facts(second)["sandbox_tier"] == facts(first)["sandbox_tier"], "where the stored verdicts come from"
    assert all(check.passed for check in second.get_asset_check_evaluations())


def test_a_new_threshold_verifies_nothing_and_new_limits_everything(materialize: Materialize) -> None:
    materialize("full", VerifierSuite(workers=1))
    lower = materialize("full", VerifierSuite(workers=1), with_verification(thresholds=dict.fromkeys(CATEGORIES, 0.4)))
    assert facts(lower)["verified_new"] == 1
    assert lower.output_for_node("verified_responses")["passed"].to_list()[5]  # half of the tests is above 0.4
    slower = materialize("full", VerifierSuite(workers=1), with_verification(seconds_per_test=2.0))
    assert facts(slower)["verified_new"] == len(CASES)


def test_a_run_that_dies_loses_the_batch_in_flight_and_nothing_else(
    materialize: Materialize, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdicts_module, "BATCH", 3)
    suite = VerifierSuite(workers=1)
    real, calls = SuiteVerifier.verify, []

    def dies(self: SuiteVerifier, requests: list[VerificationRequest]) -> list[Verdict]:
        calls.append(len(requests))
        if len(calls) == 3:
            raise MemoryError
        return real(self, requests)

    with monkeypatch.context() as patch:
        patch.setattr(SuiteVerifier, "verify", dies)
        assert not materialize("full", suite).success
    result = materialize("full", suite)
    assert facts(result)["verified_new"] == len(CASES) - 6
    assert result.output_for_node("verified_responses")["verdict"].to_list() == [case[3] for case in CASES]


def test_rule_and_judge_that_contradict_each_other_are_rows_with_both_verdicts(
    materialize: Materialize, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, _ = judge_that(lambda user: '{"correct": true}', control=False)
    monkeypatch.setattr(VerifierSuite, "_judge", lambda self, settings: judge)
    recipe = with_verification(judge="fallback", judge_model="m")
    result = materialize("full", VerifierSuite(workers=1), recipe, also="judge_disagreements")
    assert result.success
    assert facts(result)["judge_disagreements"] == 1
    assert facts(result)["judge_disagreement_rate"] == 1.0
    row = result.output_for_node("judge_disagreements").row(0, named=True)
    assert (row["reference_answer"], row["answer"]) == ("42", "41")
    assert (row["rule_verdict"], row["judge_verdict"], row["verdict"]) == ("failed", "passed", "passed")
    assert "same_answer#" in row["judge"]


def test_other_weights_of_the_judge_or_another_prompt_verify_again(
    materialize: Materialize, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, _ = judge_that(lambda user: '{"correct": false}', control=False)
    monkeypatch.setattr(VerifierSuite, "_judge", lambda self, settings: judge)
    recipe = with_verification(judge="fallback", judge_model="m")

    def verified_new() -> int:
        return facts(materialize("full", VerifierSuite(workers=1), recipe))["verified_new"]

    assert [verified_new(), verified_new()] == [len(CASES), 1]
    judge.name = "model@another"
    assert [verified_new(), verified_new()] == [len(CASES), 1]
    monkeypatch.setitem(vars(SAME_ANSWER), "prompt", Prompt("same_answer", SAME_ANSWER.prompt.text + " Really."))
    assert [verified_new(), verified_new()] == [len(CASES), 1]


@pytest.mark.parametrize("kind", ["judge_model", "reward_model"])
def test_a_model_that_is_loaded_here_waits_for_the_gpu(kind: str) -> None:
    values = with_verification(**{kind: "m"}).model_dump(mode="json")
    served = Recipe.model_validate(values)
    values["models"]["m"] = {"kind": "directory", "license": "x", "path": "/models/m"}
    pools = [
        build_assets(recipe, Partitions.of(recipe))[0].op.pool for recipe in (served, Recipe.model_validate(values))
    ]
    assert pools == ["verifier", "gpu"]


def test_an_empty_partition_is_an_empty_table(materialize: Materialize) -> None:
    result = materialize("empty", VerifierSuite(workers=1))
    assert result.success
    assert result.output_for_node("verified_responses").shape == (0, len(tables.VERIFICATION))


def test_without_a_sandbox_code_is_unverifiable_and_the_rest_goes_on(materialize: Materialize) -> None:
    result = materialize("full", VerifierSuite(workers=1, sandbox="off"))
    rows = result.output_for_node("verified_responses")
    assert set(rows.filter(category="code")["verdict"]) == {"unverifiable"}
    assert rows.filter(category="math")["passed"].sum() == 1


class _Broken(Verifier):
    """Infrastructure that fails `times` times for every response, then works."""

    def __init__(self, times: int) -> None:
        self.times, self.seen = times, {}

    def verify(self, requests: list[VerificationRequest]) -> list[Verdict]:
        verdicts = []
        for request in requests:
            self.seen[request.response_id] = self.seen.get(request.response_id, 0) + 1
            if self.seen[request.response_id] <= self.times:
                verdicts.append(Verdict(request.response_id, None, None, "infra_error", "x"))
            else:
                verdicts.append(Verdict(request.response_id, 1.0, 1.0, "passed", "x"))
        return verdicts


def test_infrastructure_errors_are_tried_again_and_recover() -> None:
    wanted, broken = requests(response_table(), query_table()), _Broken(times=2)

    def verify_batches(batches: Iterable[list[VerificationRequest]], count: int) -> Iterator[Outcome[list[Verdict]]]:
        return (Outcome(index, broken.verify(batch)) for index, batch in enumerate(batches))

    run = verify(wanted, [None] * len(wanted), verify_batches)
    assert {verdict.verdict for verdict in run.verdicts} == {"passed"}


def test_one_percent_of_infrastructure_errors_is_tolerated_and_more_is_not() -> None:
    def with_errors(count: int) -> Run:
        codes = ["infra_error"] * count + ["passed"] * (100 - count)
        return Run([Verdict(str(index), None, None, code, "x") for index, code in enumerate(codes)], 1.0)

    require_working_infrastructure(with_errors(1), Verification().max_infra_error_share)
    with pytest.raises(VerificationError, match=r"2.0% of the verdicts are infrastructure errors \(at most 1.0%"):
        require_working_infrastructure(with_errors(2), Verification().max_infra_error_share)


def test_lasting_infrastructure_errors_fail_the_asset_and_write_nothing(
    materialize: Materialize, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VerifierSuite, "open", lambda self, settings: _Broken(times=99))
    result = materialize("full", VerifierSuite())
    assert not result.success
    assert not result.asset_materializations_for_node("verified_responses")
    message = str(result.failure_data_for_node("verified_responses").error)
    assert "100.0% of the verdicts are infrastructure errors" in message


def test_a_response_without_its_query_is_refused() -> None:
    with pytest.raises(VerificationError, match="no query in distillation_queries"):
        requests(response_table(), query_table().filter(pl.col("query_id") != "m"))


def test_a_response_twice_is_refused() -> None:
    responses = response_table()
    with pytest.raises(VerificationError, match="twice"):
        requests(pl.concat([responses, responses]), query_table())


@given(st.floats(0, 1), st.sampled_from(["passed", "failed"]), st.floats(0, 1))
def test_passing_is_strictly_above_the_threshold(score: float, verdict: str, threshold: float) -> None:
    responses = response_table().head(1)
    rows = table(responses, [Verdict("r0", score, score, verdict, "x")], Cutoffs({"math": threshold}))
    assert rows["passed"][0] == (score > threshold)
    assert rows["verdict"][0] == ("passed" if score > threshold else "failed")


@given(st.sampled_from(["unverifiable", "timeout", "infra_error"]))
def test_only_scored_verdicts_can_pass(verdict: str) -> None:
    rows = table(response_table().head(1), [Verdict("r0", 1.0, 1.0, verdict, "x")], Cutoffs({"math": 0.5}))
    assert rows.select("passed", "verdict").row(0) == (False, verdict)


@pytest.mark.parametrize(
    ("changes", "cutoff", "passed"),
    [
        ({"thresholds": {"other": 0.5}}, 0.5, [False, True, True]),
        ({"thresholds": {"other": 0.5}, "quantiles": {"other": 0.5}}, 0.6, [False, False, True]),
        ({"thresholds": {"other": 0.1}, "answer_score": {"threshold": 0.5}}, 0.1, [True, False, False]),
        ({"thresholds": {"other": 0.1}, "answer_score": {"quantile": 0.0}}, 0.1, [True, True, False]),
        ({"answer_score": {"threshold": 0.45}, "reward_model": None}, 0.45, [False, True, False]),
    ],
)
def test_cutoffs_are_values_or_quantiles_and_a_judges_score_has_its_own(
    changes: dict, cutoff: float, passed: list[bool]
) -> None:
    responses = response_table().head(3).with_columns(category=pl.lit("other"))
    verdicts = [
        Verdict(f"r{i}", score, score, "passed", "reward", judge_score=mark)
        for i, (score, mark) in enumerate([(0.4, 0.9), (0.6, 0.5), (0.8, 0.2)])
    ]
    part = Verification(**{"judge_model": "m", "reward_model": "m", **changes})
    rows = table(responses, verdicts, cutoffs(part, verdicts, responses))
    assert rows["passed"].to_list() == passed
    assert rows["cutoff"].to_list() == [cutoff] * 3


def test_the_histogram_counts_every_response_once() -> None:
    rows = pl.DataFrame({"verify_score_normalised": [None, 0.0, 0.1, 0.25, 0.3, 0.9, 1.0]})
    assert sum(score_histogram(rows).values()) == rows.height
    assert Run([], 0.0).infra_error_share() == 0.0
