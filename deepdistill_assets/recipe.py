"""The scientific knobs: a YAML file becomes a typed, validated, hashable recipe. Knows nothing of machines."""

import hashlib
import json
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, model_validator

from deepdistill_resources.engines.base import SamplingParameters
from deepdistill_resources.engines.prompting import PromptStyle
from deepdistill_resources.errors import RecipeError
from deepdistill_resources.judges import JUDGE_SAMPLING, prompt_hashes
from deepdistill_resources.models import ModelOrigin
from deepdistill_resources.trainers.base import TrainingParameters
from deepdistill_resources.verifiers.base import NamedModel, VerificationSettings

Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
Category = Literal["math", "code", "science", "instruction_following", "multi_turn", "other"]
CATEGORIES: tuple[Category, ...] = ("math", "code", "science", "instruction_following", "multi_turn", "other")


class Part(BaseModel):
    """Base of every part of a recipe: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def fingerprint(self) -> str:
        """Return a short hash of the part's values."""
        return fingerprint(self.model_dump(mode="json"))


def fingerprint(value: Any) -> str:
    """Return a short, stable hash of plain JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


class Source(Part):
    """One source of raw queries.

    `reader` names a function of `queries/readers.py`; `options` are its arguments (file, package, mapping, ...).
    """

    category: Category
    license: str
    reader: str
    options: dict[str, Any] = {}
    description: str = ""
    language: str = "en"
    priority: int = 100  # lower survives among duplicates
    limit: int | None = None
    teachers: tuple[Slug, ...] | None = None  # None: all teachers answer this source
    max_quarantined: float = 0.05  # above this share of malformed rows (or of unreadable files) the asset fails
    corrections: str | None = None  # a JSONL file of mended rows (docs/sources.md)
    check_references: bool = True  # math and multiple choice: a reference that no verifier can use is quarantined


class Cleaning(Part):
    """Query filters (DeepDistill section 2.2); None switches a filter off."""

    min_characters: int = 2
    max_characters: int = 200_000
    max_foreign_character_ratio: float | None = 0.3  # share of letters outside `scripts`
    scripts: tuple[str, ...] = ("Latin", "Greek", "Han")
    languages: tuple[str, ...] | None = None
    drop_incomplete: bool = True
    drop_urls: bool = True
    drop_tables: bool = True
    drop_figures: bool = True
    drop_unbalanced: bool = True  # LaTeX delimiters or code fences that never close
    drop_proofs: bool = False  # nothing to verify an answer against (arXiv 2505.08311)
    drop_multi_part: bool = False


class Labelling(Part):
    """Labels of queries by a language model, before any response exists (arXiv 2503.19633 section 2.1).

    `category` is one of 13 tags, `difficulty` one of five levels; `constraints` reads IFEval constraints out of queries
    of instruction following that carry none as data. `tokenizer`: tokens of queries are counted by this model's.
    """

    model: Slug | None = None  # key of `models`; None: language and length only
    category: bool = True
    difficulty: bool = True
    constraints: bool = True
    sampling: SamplingParameters = SamplingParameters(temperature=0.0, top_p=1.0, max_new_tokens=512)
    max_query_characters: int = 8000  # the labeller sees so much of a query
    tokenizer: Slug | None = None  # key of `models`


Difficulty = Literal["very easy", "easy", "medium", "hard", "very hard"]
DIFFICULTIES: tuple[Difficulty, ...] = ("very easy", "easy", "medium", "hard", "very hard")


class Deduplication(Part):
    """Exact, near (MinHash) and semantic duplicates across all sources.

    `survivor`: who stays, most important first: a query with a reference answer or tests, one that came with responses,
    the one labelled harder, the lower source priority, the longer text; ties by id.
    """

    num_permutations: int = 128
    bands: int = 21
    rows: int = 6
    shingle_words: int = 3
    jaccard_threshold: float = 0.8
    semantic_threshold: float | None = None  # cosine; None: off
    survivor: tuple[Literal["reference", "responses", "difficulty", "priority", "length"], ...] = (
        "reference",
        "priority",
        "length",
    )


class Decontamination(Part):
    """Matches against every benchmark problem (DeepDistill section 2.3)."""

    ngram_words: int = 13
    ngram_share: float = 0.5  # share of the shorter text's n-grams that must be shared
    semantic_threshold: float | None = 0.9


class Embedding(Part):
    """The sentence embedder used for semantic duplicates and decontamination."""

    origin: ModelOrigin
    dimension: int


class Teacher(Part):
    """A model that answers queries, in one prompting mode.

    `existing_responses` says what becomes of responses that came with a source: `ignore`; `fill`: they are passes, only
    the missing passes are generated; `accept`: a query one of whose responses passes verification is not asked, every
    other query gets all its passes (arXiv 2503.19633). A teacher whose model is of kind `imported` generates nothing.
    """

    model: Slug  # key of `models`
    style: PromptStyle = PromptStyle()
    sampling: SamplingParameters = SamplingParameters()
    max_new_tokens: dict[Category, int] = {}  # overrides of sampling.max_new_tokens
    passes: int = 4
    existing_responses: Literal["ignore", "fill", "accept"] = "ignore"
    response_source: str | None = None  # what generated rows are labelled with; None: the teacher's key
    prompt_price: float = 0.0  # money per million prompt tokens
    completion_price: float = 0.0
    description: str = ""


class Student(Part):
    """A model that is trained; `style` is how training rows and benchmark prompts are rendered."""

    model: Slug
    style: PromptStyle = PromptStyle()


class ResponsePolicy(Part):
    """How many passes: always the teacher's `passes`, or until one is accepted, at most so many (arXiv 2505.14464).

    Accepted: above the category's threshold of `verification` (strict), or, where `accept_score` is given, a normalised
    score from there on.
    """

    kind: Literal["fixed", "until_passed"] = "fixed"
    accept_score: float | None = None
    chunk_size: int = 64
    token_budget: int | None = None  # generated tokens at most, estimated before the run


class AnswerScore(Part):
    """A judge's score of the answer part, for categories without a rule; strict > (arXiv 2503.19633 section 2.2)."""

    threshold: float = 0.7  # on 0-1
    quantile: float | None = None  # the cut-off is this quantile of a partition's scores instead


class Verification(Part):
    """Pass thresholds on the paper's scale, strict > (DeepDistill section 2.4).

    `judge` is for math: `fallback` asks the judge where the rule says wrong, `beside` always, and both must agree. With
    a `judge_model`, science answers that no rule decides are scored by it, 0 to 5.
    """

    thresholds: dict[Category, float] = {
        "math": 0.99,
        "code": 0.99,
        "instruction_following": 0.99,
        "science": 4.99,
        "multi_turn": 0.7,
        "other": 0.7,
    }
    quantiles: dict[Category, float] = {}  # the cut-off is this quantile of a partition's scores instead
    judge: Literal["off", "fallback", "beside"] = "off"
    judge_model: Slug | None = None
    judge_sampling: SamplingParameters = JUDGE_SAMPLING
    judge_control: bool = True  # a good mark must be lower for another reference: twice the questions, few tricked
    answer_score: AnswerScore | None = None  # the judge scores multi_turn and other, beside the reward model if any
    reward_model: Slug | None = None
    max_test_cases: int = 10
    seconds_per_test: float = 3.0
    math_timeout_seconds: float = 6.0
    max_infra_error_share: float = 0.01
    scores: Literal["ours", "released"] = "ours"  # released: of imported responses; without one they are verified here
    released_science_scale: Literal["detect", "0-5", "0-1"] = "detect"


class Quality(Part):
    """Quality checks (DeepDistill section 2.5)."""

    perplexity_model: Slug | None = None
    max_perplexity: float | None = 20.0
    ngram_tokens: int = 20
    ngram_max_count: int = 20  # dropped if an n-gram occurs more often
    ngram_scope: Literal["corpus", "response"] = "corpus"
    require_think: bool = True
    require_answer: bool = True
    drop_truncated: bool = True
    exact_tags: bool = False  # <think>..</think><answer>..</answer>, nothing else (arXiv 2503.19633 section 2.2)
    max_repeated_word: int | None = None  # dropped if one word stands more often in a row; None: off


class Grading(Part):
    """Pass rate and coefficient of variation (DeepDistill section 3, equations 5 and 6)."""

    ddof: Literal[0, 1] = 0
    interval: float = 0.95
    quality_drops_count: bool = True  # the other reading leaves quality drops out of n
    level_teachers: tuple[Slug, ...] = ()  # weakest first, for the levels of arXiv 2504.00829


class StageOne(Part):
    """Algorithm 1."""

    teacher: Slug
    cv_thresholds: dict[Category, float] = dict.fromkeys(CATEGORIES, 0.05)
    easy_keep_probability: dict[Category, float] = {
        "math": 0.0,
        "code": 0.0,
        "science": 0.0,
        "instruction_following": 0.0,
        "multi_turn": 0.5,
        "other": 0.5,
    }
    gate: Literal["strict", "printed"] = "strict"  # printed: drop when max < threshold; strict: when max <= threshold
    coin: Literal["query", "response"] = "query"
    easy_keep: Literal["passing", "all"] = "passing"
    category_caps: dict[Category, int] = {}
    max_responses_per_query: int | None = None


class StageTwo(Part):
    """Annealing: the queries with the highest CV, one passing response each."""

    threshold: float = 0.99  # on the normalised score
    top_k: dict[Category, int] = {}  # absent: no limit
    cv_thresholds: dict[Category, float] | None = None  # None: those of stage I


class Selection(Part):
    """What is trained on."""

    stage1: StageOne
    stage2: StageTwo | None = None


class Training(Part):
    """One set of hyper-parameters per stage, and the studies."""

    stage1: TrainingParameters
    stage2: TrainingParameters | None = None
    validation_share: float = 0.0
    learning_rates: tuple[float, ...] = ()  # learning_rate_study
    study_seeds: tuple[int, ...] = (0,)
    selection_study_rows: int = 0  # 0: no selection study


class Benchmark(Part):
    """One benchmark; `reader` and `options` as in a source."""

    category: Category
    license: str
    reader: str
    options: dict[str, Any] = {}
    description: str = ""
    limit: int | None = None
    samples: int = 1
    sampling: SamplingParameters | None = None
    reported: dict[str, float] = {}  # the papers' numbers, percent
    claim: bool = False  # the benchmark on which the recipe claims its gain
    generator_of_training: bool = False  # made by a generator that also makes training queries


class GivenCheckpoint(Part):
    """Weights that are scored beside the trained ones, prompted like the student that they are compared with."""

    model: Slug  # key of `models`; kind directory gives a path
    student: Slug


class Evaluation(Part):
    """How checkpoints are scored."""

    benchmarks: dict[Slug, Benchmark]
    sampling: SamplingParameters = SamplingParameters()
    bootstrap_samples: int = 2000
    include_teachers: tuple[Slug, ...] = ()  # teachers scored beside the checkpoints
    checkpoints: dict[Slug, GivenCheckpoint] = {}  # weights from elsewhere, by the name they have on the scoreboard
    block_on_contamination: bool = False  # a trained checkpoint is not scored on a benchmark found in its training rows
    judge_model: Slug | None = None  # asked where the rule calls a math answer wrong, and of open science answers


class Publishing(Part):
    """What is exported."""

    accepted_licenses: tuple[str, ...] = ()  # unknown or non-commercial licences accepted by name


class Recipe(Part):
    """A whole recipe."""

    name: Slug
    title: str
    description: str
    needs: str = ""  # what a machine must have to run it, for `deepdistill recipes`
    seed: int = 0
    models: dict[Slug, ModelOrigin]
    sources: dict[Slug, Source]
    cleaning: Cleaning = Cleaning()
    labels: Labelling = Labelling()
    embedding: Embedding | None = None
    deduplication: Deduplication = Deduplication()
    decontamination: Decontamination = Decontamination()
    downsampling: dict[Difficulty, float] = {}  # share of queries kept by label (arXiv 2503.19633 section 2.1)
    teachers: dict[Slug, Teacher]
    responses: ResponsePolicy = ResponsePolicy()
    verification: Verification = Verification()
    quality: Quality = Quality()
    grading: Grading = Grading()
    selection: Selection
    students: dict[Slug, Student]
    training: Training
    evaluation: Evaluation
    publishing: Publishing = Publishing()

    @model_validator(mode="after")
    def _references_exist(self) -> "Recipe":
        wanted: list[tuple[str, str | None]] = [
            (f"teachers.{key}.model", teacher.model) for key, teacher in self.teachers.items()
        ]
        wanted += [(f"students.{key}.model", student.model) for key, student in self.students.items()]
        wanted += [("quality.perplexity_model", self.quality.perplexity_model)]
        wanted += [("verification.judge_model", self.verification.judge_model)]
        wanted += [("evaluation.judge_model", self.evaluation.judge_model)]
        wanted += [("labels.model", self.labels.model), ("labels.tokenizer", self.labels.tokenizer)]
        wanted += [("verification.reward_model", self.verification.reward_model)]
        for key, given in self.evaluation.checkpoints.items():
            wanted.append((f"evaluation.checkpoints.{key}.model", given.model))
            if given.student not in self.students:
                raise ValueError(f"evaluation.checkpoints.{key}.student: {given.student!r} is not a key of students.")
            if key in ("base", "stage1", "stage2"):
                raise ValueError(f"evaluation.checkpoints: {key!r} is the name of a checkpoint made here.")
        for place, name in wanted:
            if name is not None and name not in self.models:
                raise ValueError(f"{place}: {name!r} is not a key of models ({', '.join(self.models)}).")
        teachers = [("selection.stage1.teacher", self.selection.stage1.teacher)]
        teachers += [("evaluation.include_teachers", name) for name in self.evaluation.include_teachers]
        teachers += [("grading.level_teachers", name) for name in self.grading.level_teachers]
        for key, source in self.sources.items():
            teachers += [(f"sources.{key}.teachers", name) for name in source.teachers or ()]
        for place, name in teachers:
            if name not in self.teachers:
                raise ValueError(f"{place}: {name!r} is not a key of teachers ({', '.join(self.teachers)}).")
        for key, student in self.students.items():
            if self.models[student.model].kind == "imported":
                raise ValueError(f"students.{key}.model: a model of kind imported cannot be trained.")
        if (self.training.stage2 is None) != (self.selection.stage2 is None):
            raise ValueError("selection.stage2 and training.stage2 must both be given or both be left out.")
        judged = self.verification.judge != "off" or self.verification.answer_score is not None
        if judged and self.verification.judge_model is None:
            raise ValueError("verification.judge and verification.answer_score need verification.judge_model.")
        by_difficulty = [("downsampling", bool(self.downsampling))]
        by_difficulty += [("deduplication.survivor: difficulty", "difficulty" in self.deduplication.survivor)]
        for place, used in by_difficulty:
            if used and not self._knows_difficulty():
                raise ValueError(
                    f"{place} needs labels: give labels.model (with labels.difficulty), or label_difficulty in the "
                    "mapping of a source."
                )
        return self

    def _knows_difficulty(self) -> bool:
        """Whether some query has a label of difficulty: a model's, or one that its source gives."""
        mappings = [source.options.get("mapping") for source in self.sources.values()]
        given = any(isinstance(mapping, dict) and mapping.get("label_difficulty") for mapping in mappings)
        return given or (self.labels.model is not None and self.labels.difficulty)

    def verification_settings(self) -> VerificationSettings:
        """Return what the verifiers need to know of this recipe."""
        part = self.verification
        judge, reward = part.judge_model, part.reward_model
        return VerificationSettings(
            max_test_cases=part.max_test_cases,
            seconds_per_test=part.seconds_per_test,
            math_timeout_seconds=part.math_timeout_seconds,
            judge=part.judge,
            judge_model=NamedModel(judge, self.models[judge]) if judge else None,
            judge_sampling=part.judge_sampling,
            judge_control=part.judge_control,
            judge_answers=part.answer_score is not None,
            reward_model=NamedModel(reward, self.models[reward]) if reward else None,
        )

    def verification_models(self) -> dict[str, ModelOrigin]:
        """Return where the judge and the reward model come from, by name."""
        named = (self.verification.judge_model, self.verification.reward_model)
        return {name: self.models[name] for name in named if name is not None}

    def judge_prompts(self) -> list[dict[str, str]]:
        """Return the hashes of the judge's prompts, where there is a judge: an edited prompt makes its marks stale."""
        return [prompt_hashes()] if self.verification.judge_model else []

    def imported(self, teacher: str) -> bool:
        """Whether all that a teacher wrote came with the sources: nothing is generated."""
        return self.models[self.teachers[teacher].model].kind == "imported"

    def reads_existing(self, teacher: str) -> bool:
        """Whether responses that came with a source become responses of `teacher`."""
        return self.imported(teacher) or self.teachers[teacher].existing_responses != "ignore"

    def stops_early(self) -> bool:
        """Whether a query can end with fewer passes than the teacher's, since one of its responses was accepted."""
        accepts = any(teacher.existing_responses == "accept" for teacher in self.teachers.values())
        return accepts or self.responses.kind == "until_passed"

    def answers(self, source: str, teacher: str) -> bool:
        """Whether `teacher` answers the queries of `source`."""
        only = self.sources[source].teachers
        return only is None or teacher in only


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with the project."""
    folder = files("deepdistill_assets") / "recipes"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def load_recipe(name_or_path: str) -> Recipe:
    """Load a recipe by its name or by the path of a YAML file.

    Raises:
        RecipeError: names the file, the key, what is wrong there and what would be allowed.
    """
    path = recipe_path(name_or_path)
    try:
        return checked_recipe(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not valid YAML: {error}") from error
    except RecipeError as error:
        raise RecipeError(f"{path}: {error.message}") from error


def checked_recipe(text: str) -> Recipe:
    """Return the recipe that a YAML text holds; raises RecipeError, as `load_recipe`, without the name of a file."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"a recipe is a mapping of keys to values, found {type(values).__name__}.")
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError("; ".join(_explain(item) for item in error.errors())) from error


def recipe_path(name_or_path: str) -> Path:
    """Return the file of a recipe; raises RecipeError if there is none."""
    if name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
        if not path.is_file():
            raise RecipeError(f"{path}: no such file.")
        return path
    if name_or_path not in recipe_names():
        raise RecipeError(f"no recipe named {name_or_path!r}.", f"use one of {', '.join(recipe_names())}, or a path.")
    return Path(str(files("deepdistill_assets") / "recipes" / f"{name_or_path}.yaml"))


def _explain(item: Any) -> str:
    place = ".".join(str(part) for part in item["loc"]) or "recipe"
    if item["type"] == "extra_forbidden":
        allowed = _allowed_keys(item["loc"][:-1])
        close = get_close_matches(str(item["loc"][-1]), allowed, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"{place}: unknown key{hint} (allowed: {', '.join(allowed)})"
    return f"{place}: {item['msg']}"


def _allowed_keys(location: tuple[Any, ...]) -> list[str]:
    model: Any = Recipe
    for part in location:
        if isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            model = _model_of(model.model_fields[part].annotation)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _model_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_of(argument)
        if found is not None:
            return found
    return None
