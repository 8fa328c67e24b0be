"""What verification is done with makes stale all that it decides, and nothing else."""

from deepdistill_assets.evaluation.assets import build_assets as build_evaluation
from deepdistill_assets.partitions import Partitions
from deepdistill_assets.recipe import Recipe
from deepdistill_assets.responses.assets import build_assets as build_responses
from deepdistill_assets.stage import PARTITION_VERSIONS
from deepdistill_assets.training.assets import build_assets as build_training
from deepdistill_assets.verification.assets import build_assets as build_verification
from deepdistill_resources.judges import SAME_ANSWER, Prompt

ROOMS = (build_responses, build_verification, build_training, build_evaluation)
STUDIES = {"learning_rate_study", "selection_study"}


def versions(kind, revision="one", **verification):
    judge = {"kind": "hub", "license": "x", "repository": "a/judge", "revision": revision}
    reward = {"kind": "hub", "license": "x", "repository": "a/reward", "revision": "one"}
    recipe = Recipe.model_validate(
        {
            "name": "t",
            "title": "t",
            "description": "t",
            "models": {
                "m": {"kind": "directory", "path": "/nowhere", "license": "MIT"},
                "judge": judge,
                "reward": {**reward, "revision": verification.pop("reward_revision", "one")},
            },
            "sources": {"s": {"category": "other", "license": "MIT", "reader": "none"}},
            "teachers": {"t": {"model": "m"}},
            "responses": {"kind": kind},
            "verification": {"judge_model": "judge", "reward_model": "reward", **verification},
            "selection": {"stage1": {"teacher": "t"}},
            "students": {"x": {"model": "m"}},
            "training": {
                "stage1": {"learning_rate": 1e-4, "epochs": 1},
                "learning_rates": [1e-3],
                "selection_study_rows": 4,
            },
            "evaluation": {"benchmarks": {"b": {"category": "math", "license": "MIT", "reader": "none"}}},
        }
    )
    assets = [asset for build in ROOMS for asset in build(recipe, Partitions.of(recipe))]
    return {asset.key.path[-1]: _version(asset) for asset in assets}


def _version(asset):
    return asset.code_versions_by_key[asset.key], asset.metadata_by_key[asset.key].get(PARTITION_VERSIONS)


def stale(kind, **changes):
    before = versions(kind)
    return {name for name, version in versions(kind, **changes).items() if version != before[name]}


def test_another_commit_of_the_judge_or_the_reward_model_makes_verdicts_stale():
    assert stale("fixed", revision="two") == {"verified_responses"}
    assert stale("fixed", reward_revision="two") == {"verified_responses"}
    assert stale("until_passed", revision="two") == {"verified_responses", "responses"}


def test_an_edited_prompt_of_the_judge_makes_its_verdicts_stale(monkeypatch):
    without = {kind: versions(kind, judge_model=None) for kind in ("fixed", "until_passed")}
    before = {kind: versions(kind) for kind in ("fixed", "until_passed")}
    edited = Prompt("same_answer", SAME_ANSWER.prompt.text + " Be strict.")
    monkeypatch.setitem(SAME_ANSWER.__dict__, "prompt", edited)

    def changed(kind, versions_before, **options):
        return {name for name, found in versions(kind, **options).items() if found != versions_before[name]}

    assert changed("fixed", before["fixed"]) == {"verified_responses"}
    assert changed("until_passed", before["until_passed"]) == {"verified_responses", "responses"}
    assert changed("fixed", without["fixed"], judge_model=None) == set()
    assert changed("until_passed", without["until_passed"], judge_model=None) == set()


def test_other_limits_make_verdicts_and_scores_stale():
    decided = {"verified_responses", "benchmark_responses", *STUDIES}
    assert stale("fixed", seconds_per_test=9.0) == decided
    assert stale("until_passed", math_timeout_seconds=9.0) == {*decided, "responses"}
