"""Asking until a response is accepted: scripted teacher, real verifier, stored verdicts."""

from collections import Counter

import polars as pl
import pytest

from deepdistill_assets import tables
from deepdistill_assets.recipe import Recipe
from deepdistill_assets.responses import waves
from deepdistill_assets.responses.acceptance import Acceptance, Rule
from deepdistill_assets.responses.facts import passes_complete
from deepdistill_assets.responses.query_blocks import QueryBlocks
from deepdistill_assets.responses.waves import Distillation, Pair
from deepdistill_assets.scores import CountingRules
from deepdistill_resources.chunk_store import ChunkStore
from deepdistill_resources.engines.base import GenerationResponse, GenerationSession
from deepdistill_resources.errors import DeepDistillError, EngineError
from deepdistill_resources.generation import GENERATED
from deepdistill_resources.lake import Lake
from deepdistill_resources.verifiers.base import Verdict, Verifier
from deepdistill_resources.verifiers.stored import VerdictStore
from deepdistill_resources.verifiers.suite import VerifierSuite

RIGHT_AT = {"q0": 0, "q1": 1, "q2": 2, "q3": 9}  # the pass that is right; q3 never is


class Teacher(GenerationSession):
    """Answers right from a query's pass on; remembers what it was asked."""

    engine_name, engine_version = "scripted", "1"

    def __init__(self, attempts, refused=()):
        self.attempts, self.asked, self.refused = attempts, Counter(), refused

    def generate(self, requests, sampling):
        for request in requests:
            query = request.messages[-1]["content"]
            if (query, self.attempts[query]) in self.refused:
                yield GenerationResponse(request.key, "", "server_error", "error", 3, 0, None, 0.1, "HTTP 400")
                continue
            answer = 7 if self.attempts[query] >= RIGHT_AT[query] else 8
            self.asked[query] += 1
            self.attempts[query] += 1
            text = f"<think>t</think><answer>{answer}</answer>"
            yield GenerationResponse(request.key, text, "ok", "stop", 3, 5, None, 0.1)

    def perplexities(self, texts):
        return [None for _ in texts]


class Recording(Verifier):
    """The real verifier, or one whose answers are given; counts what it is shown."""

    def __init__(self, settings, verdict=None):
        self.real, self.verdict, self.shown = VerifierSuite(workers=1).open(settings), verdict, 0

    def verify(self, requests):
        self.shown += len(requests)
        if self.verdict:
            return [Verdict(request.response_id, None, None, **self.verdict) for request in requests]
        return self.real.verify(requests)

    def close(self):
        self.real.close()


def make_recipe(**changes):
    return Recipe.model_validate(
        {
            "name": "t",
            "title": "t",
            "description": "t",
            "models": {"m": {"kind": "directory", "path": "/nowhere", "license": "MIT"}},
            "sources": {"s": {"category": "math", "license": "MIT", "reader": "none"}},
            "teachers": {"t": {"model": "m", "passes": 4, **changes.pop("teacher", {})}},
            "responses": {"kind": "until_passed", **changes.pop("responses", {})},
            "students": {"x": {"model": "m"}},
            "selection": {"stage1": {"teacher": "t"}},
            "training": {"stage1": {"learning_rate": 1e-4, "epochs": 1}},
            "evaluation": {"benchmarks": {}},
        }
    )


def queries(reference="7"):
    rows = [
        {"query_id": name, "source": "s", "category": "math", "query_text": name, "reference_answer": reference}
        | {"messages": [{"role": "user", "content": name}]}
        for name in RIGHT_AT
    ]
    return tables.conform(pl.DataFrame(rows), tables.QUERY)


class World:
    def __init__(self, directory, recipe, existing=()):
        self.lake, self.recipe, self.existing = Lake(root=str(directory)), recipe, list(existing)
        self.attempts = Counter()

    def run(self, verdict=None, reference="7", refused=()):
        self.teacher, self.log = Teacher(self.attempts, refused), []
        verifier = Recording(self.recipe.verification_settings(), verdict)
        store = ChunkStore(self.lake, "responses", "response_id", GENERATED)
        verdicts = VerdictStore(self.lake, "source=s/teacher=t", self.recipe.verification_settings(), {})
        acceptance = Acceptance(lambda: verifier, lambda identity: verdicts, Rule.of(self.recipe))
        existing = pl.LazyFrame(self.existing, schema=tables.EXISTING_RESPONSE)
        try:
            self.pair, wanted = Pair(self.recipe, "s", "t", "r"), QueryBlocks(queries(reference).lazy())
            outcome = Distillation(self.pair, wanted, existing, self.teacher, store, acceptance, self.log.append).run()
            self.rows = outcome.rows.scan().collect()
        finally:
            acceptance.close()
            verifier.close()
        self.shown = verifier.shown
        return outcome


def counts(rows):
    return dict(rows.group_by("query_id").len().sort("query_id").iter_rows())


def test_a_query_is_asked_until_it_passes_and_every_attempt_is_a_row(tmp_path):
    world = World(tmp_path, make_recipe())
    outcome = world.run()
    assert counts(world.rows) == {"q0": 1, "q1": 2, "q2": 3, "q3": 4} == dict(world.teacher.asked)
    assert world.rows.select("query_id", "pass_index").n_unique() == 10
    assert outcome.closed == {"accepted": 3, "hopeless": 0, "unresolved": 0}
    assert "wave 3 of at most 4 done, 1 of 4 queries are still open" in world.log
    first = world.rows
    world.run()
    assert world.rows.equals(first)
    assert not world.teacher.asked and world.shown == 0, "responses and verdicts are stored"


def test_more_attempts_ask_only_the_open_queries(tmp_path):
    World(tmp_path, make_recipe(teacher={"passes": 2})).run()
    world = World(tmp_path, make_recipe())
    world.run()
    assert counts(world.rows) == {"q0": 1, "q1": 2, "q2": 4, "q3": 4}
    assert dict(world.teacher.asked) == {"q2": 2, "q3": 2}


def test_a_score_of_the_recipe_decides_in_place_of_the_thresholds(tmp_path):
    world = World(tmp_path, make_recipe(responses={"accept_score": 0.0}))
    world.run()
    assert counts(world.rows) == dict.fromkeys(RIGHT_AT, 1)


NO_SANDBOX = {"verdict": "unverifiable", "verifier": "code:no_sandbox", "hopeless": True}
JUDGE_ERROR = {"verdict": "unverifiable", "verifier": "math:exact", "judge": "j", "second_opinion": "judge_error"}
TOO_LONG = {"verdict": "unverifiable", "verifier": "reward:five_heads"}
TIMEOUT = {"verdict": "timeout", "verifier": "math:math-verify"}
SANDBOX_DIED = {"verdict": "infra_error", "verifier": "code:bubblewrap"}
WANTED = {"q0": 1, "q1": 2, "q2": 3, "q3": 4}  # the responses that a working verifier lets ask for


def test_no_tokens_are_spent_where_nothing_can_verify_until_something_can(tmp_path):
    world = World(tmp_path, make_recipe())
    outcome = world.run(NO_SANDBOX)
    assert counts(world.rows) == dict.fromkeys(RIGHT_AT, 1) and outcome.closed["hopeless"] == 4
    assert world.run().closed["hopeless"] == 0
    assert counts(world.rows) == WANTED


@pytest.mark.parametrize("verdict", [JUDGE_ERROR, TOO_LONG, TIMEOUT])
def test_what_cannot_be_told_of_one_response_is_an_attempt_that_failed(tmp_path, verdict):
    world = World(tmp_path, make_recipe())
    world.run(verdict)
    assert counts(world.rows) == dict.fromkeys(RIGHT_AT, 4)


def test_a_verifier_that_fails_for_too_many_queries_leaves_nothing_written(tmp_path):
    world = World(tmp_path, make_recipe())
    with pytest.raises(DeepDistillError, match="the verifier failed for 4 of 4 queries"):
        world.run(SANDBOX_DIED)
    assert dict(world.teacher.asked) == dict.fromkeys(RIGHT_AT, 1), "no tokens are spent meanwhile"
    world.run()
    assert counts(world.rows) == WANTED


def test_queries_that_a_failing_verifier_left_are_not_complete(tmp_path):
    recipe = make_recipe()
    lenient = recipe.verification.model_copy(update={"max_infra_error_share": 1.0})
    world = World(tmp_path, recipe.model_copy(update={"verification": lenient}))
    outcome = world.run(SANDBOX_DIED)
    assert outcome.closed["unresolved"] == 4
    assert not passes_complete(world.pair, 4, outcome).passed
    assert passes_complete(world.pair, 4, world.run()).passed


def test_another_reference_answer_asks_the_verifier_again(tmp_path):
    world = World(tmp_path, make_recipe())
    world.run(reference="8")
    assert counts(world.rows) == {"q0": 4, "q1": 1, "q2": 1, "q3": 1}
    world.run()
    assert counts(world.rows) == WANTED


def test_what_other_settings_left_in_the_lake_is_no_row(tmp_path):
    World(tmp_path, make_recipe(responses={"kind": "fixed"})).run()
    world = World(tmp_path, make_recipe())
    world.attempts.update(dict.fromkeys(RIGHT_AT, 4))
    world.run()
    assert counts(world.rows) == WANTED and not world.teacher.asked


def test_failures_are_judged_over_the_partition_and_not_over_a_wave(tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    for number in range(20):
        monkeypatch.setitem(RIGHT_AT, f"easy{number}", 0)
    world = World(tmp_path / "one", make_recipe())
    world.run(refused=[("q3", 3)])
    assert counts(world.rows)["q3"] == 4
    assert world.rows.filter(pl.col("status") == "server_error")["query_id"].to_list() == ["q3"]
    with pytest.raises(EngineError, match="4 of 30 responses failed; the last error: HTTP 400"):
        World(tmp_path / "more", make_recipe()).run(refused=[("q3", 0)])


def came(query, answer, index=0):
    text = f"<think>t</think><answer>{answer}</answer>"
    return {"query_id": query, "source": "s", "pass_index": index, "text": text, "response_source": "s"}


def test_what_came_with_the_source_is_looked_at_first(tmp_path):
    recipe = make_recipe(teacher={"existing_responses": "accept"})
    world = World(tmp_path, recipe, [came("q3", 7), came("q2", 8)])
    world.run()
    assert counts(world.rows) == {"q0": 1, "q1": 2, "q2": 4, "q3": 1}
    assert "q3" not in world.teacher.asked


def test_grades_of_queries_that_stopped_early_are_marked(tmp_path):
    assert CountingRules.of(make_recipe(), "s").early_stopping
    fixed = make_recipe(responses={"kind": "fixed"}, teacher={"existing_responses": "accept"})
    assert CountingRules.of(fixed, "s").early_stopping
    assert not CountingRules.of(make_recipe(responses={"kind": "fixed"}), "s").early_stopping


@pytest.mark.parametrize("kind", ["fixed", "until_passed"])
def test_windows_change_nothing_but_memory(tmp_path, monkeypatch, kind):
    recipe = make_recipe(responses={"kind": kind}, teacher={"existing_responses": "fill"})
    whole = World(tmp_path / "whole", recipe, [came("q1", 8, 1)])
    whole.run()
    monkeypatch.setattr(waves, "WINDOW", 1)
    small = World(tmp_path / "small", recipe, [came("q1", 8, 1)])
    small.run()
    volatile = ("started_at", "seconds", "text", "answer")  # this teacher answers by the number of times it was asked
    assert small.rows.drop(volatile).equals(whole.rows.drop(volatile))
    assert counts(small.rows) == counts(whole.rows)
