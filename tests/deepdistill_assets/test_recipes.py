import pytest
import yaml

from deepdistill_assets.partitions import Partitions, checkpoint_keys
from deepdistill_assets.queries.assets import build_assets
from deepdistill_assets.recipe import CATEGORIES, load_recipe, recipe_names
from deepdistill_resources.engines.base import SamplingParameters
from deepdistill_resources.errors import RecipeError


def test_the_recipes_are_there():
    assert {"quickstart", "digits", "deepdistill", "am-r1-distilled", "am-quickstart"} <= set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_as_definitions(name):
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.needs
    partitions = Partitions.of(recipe)
    assert partitions.source.get_partition_keys() == list(recipe.sources)
    assert build_assets(recipe, partitions)


def test_deepdistill_says_what_the_paper_says():
    recipe = load_recipe("deepdistill")
    assert {teacher.passes for teacher in recipe.teachers.values()} == {4} and len(recipe.teachers) == 3
    assert recipe.verification.thresholds == {
        "math": 0.99,
        "code": 0.99,
        "science": 4.99,
        "instruction_following": 0.99,
        "multi_turn": 0.7,
        "other": 0.7,
    }
    assert recipe.decontamination.semantic_threshold == 0.9
    assert recipe.quality.max_perplexity == 20 and recipe.quality.ngram_tokens == recipe.quality.ngram_max_count == 20
    assert set(recipe.selection.stage1.cv_thresholds.values()) == {0.05}
    assert sum(recipe.selection.stage2.top_k.values()) == 252_540
    first, second = recipe.training.stage1, recipe.training.stage2
    assert (first.learning_rate, first.epochs, first.packing, first.max_length) == (8e-5, 1, True, 32768)
    assert (second.learning_rate, second.epochs, second.packing) == (8e-6, 2, False)
    assert {source.category for source in recipe.sources.values()} == set(CATEGORIES)
    assert recipe.evaluation.benchmarks["aime-2024"].reported["32b-stage2"] == 77.9
    assert set(recipe.evaluation.benchmarks) == {
        "aime-2024", "aime-2025", "math-500", "gpqa-diamond", "livecodebench", "ifeval", "humaneval",
    }  # fmt: skip
    assert recipe.evaluation.benchmarks["gpqa-diamond"].options["mapping"]["shuffle_options"] == 0
    assert recipe.evaluation.sampling == SamplingParameters(temperature=0.6, top_p=0.95, max_new_tokens=32768)
    assert recipe.evaluation.judge_model is None and recipe.evaluation.block_on_contamination


def test_am_r1_distilled_keeps_one_response_a_query():
    recipe = load_recipe("am-r1-distilled")
    assert list(recipe.teachers) == ["r1"] and recipe.teachers["r1"].passes == 1
    assert recipe.selection.stage2 is None and recipe.training.stage2 is None
    assert not any(key.endswith("stage2") for key in checkpoint_keys(recipe))
    assert recipe.deduplication.semantic_threshold is not None


def test_am_r1_distilled_says_what_the_paper_says():
    recipe = load_recipe("am-r1-distilled")
    teacher, verification = recipe.teachers["r1"], recipe.verification
    assert (teacher.existing_responses, teacher.response_source) == ("accept", "am-0309")
    assert recipe.responses.kind == "until_passed" and verification.judge == "beside"
    assert recipe.labels.model == verification.judge_model == "qwen2.5-7b-instruct"
    assert verification.reward_model and verification.answer_score
    assert set(recipe.downsampling) == {"easy", "medium"} and recipe.quality.exact_tags
    assert recipe.quality.max_repeated_word and recipe.quality.max_perplexity is None
    assert {source.category for source in recipe.sources.values()} == {"math", "code", "other"}
    benchmarks, sampling = recipe.evaluation.benchmarks, recipe.evaluation.sampling
    assert {name: item.samples for name, item in benchmarks.items()} == {
        "aime-2024": 16,
        "math-500": 4,
        "gpqa-diamond": 4,
        "livecodebench": 4,
    }
    assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens) == (0.6, 0.95, 32768)


def test_am_quickstart_has_every_rule_of_am_r1_distilled_on():
    large, small = load_recipe("am-r1-distilled"), load_recipe("am-quickstart")
    for part in (
        "deduplication.survivor",
        "responses.kind",
        "quality.exact_tags",
        "quality.ngram_scope",
        "selection.stage2",
    ):
        section, key = part.split(".")
        assert getattr(getattr(large, section), key) == getattr(getattr(small, section), key), part
    assert large.selection.stage1.cv_thresholds == small.selection.stage1.cv_thresholds
    assert large.selection.stage1.max_responses_per_query == small.selection.stage1.max_responses_per_query == 1
    assert small.teachers["few-shot"].existing_responses == "accept" and small.quality.max_repeated_word
    assert set(small.downsampling) == set(large.downsampling)
    assert {student.style.system for student in large.students.values()} == {small.students["smollm2"].style.system}


def test_embedded_recipes_need_no_hub_and_no_server():
    for name in ("quickstart", "digits", "am-quickstart"):
        recipe = load_recipe(name)
        assert {model.kind for model in recipe.models.values()} <= {"package", "digits"}
        readers = {source.reader for source in [*recipe.sources.values(), *recipe.evaluation.benchmarks.values()]}
        assert readers <= {"arithmetic", "digits", "reasoning_gym", "bundled", "package_file"}
        assert any(benchmark.claim for benchmark in recipe.evaluation.benchmarks.values())


def test_the_quickstart_claims_its_gain_beside_a_benchmark_that_no_generator_made():
    benchmarks = load_recipe("quickstart").evaluation.benchmarks.values()
    assert any(benchmark.claim and benchmark.generator_of_training for benchmark in benchmarks)
    assert any(benchmark.category == "math" and not benchmark.generator_of_training for benchmark in benchmarks)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"sources": {"Bad Key": {}}}, "sources.Bad Key"),
        ({"cleanning": {}}, "cleanning: unknown key; did you mean 'cleaning'"),
        ({"teachers": {"t": {"model": "none"}}}, "not a key of models"),
        ({"downsampling": {"easy": 0.5}}, "downsampling needs labels: give labels.model"),
        ({"deduplication": {"survivor": ["difficulty"]}}, "survivor: difficulty needs labels"),
        (
            {"downsampling": {"easy": 0.5}, "labels": {"model": "digits-300", "difficulty": False}},
            "downsampling needs labels",
        ),
    ],
)
def test_recipe_errors_name_file_and_key(tmp_path, change, match):
    from importlib.resources import files

    values = yaml.safe_load((files("deepdistill_assets") / "recipes" / "digits.yaml").read_text())
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**values, **change}))
    with pytest.raises(RecipeError, match=match) as error:
        load_recipe(str(path))
    assert "mine.yaml" in str(error.value)
