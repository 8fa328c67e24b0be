"""Several passes per query from each teacher, resumable at the response."""

from functools import partial

import dagster as dg
import polars as pl

from deepdistill_assets import tables
from deepdistill_assets.partitions import Partitions
from deepdistill_assets.recipe import Recipe, fingerprint
from deepdistill_assets.responses.acceptance import Acceptance, Rule
from deepdistill_assets.responses.facts import passes_complete, response_facts
from deepdistill_assets.responses.plan import check_budget
from deepdistill_assets.responses.query_blocks import QueryBlocks
from deepdistill_assets.responses.waves import Distillation, Pair
from deepdistill_assets.stage import Stage, materialized, partition_of
from deepdistill_resources.compute import Compute
from deepdistill_resources.engines.base import GenerationSession
from deepdistill_resources.engines.resource import EngineResource
from deepdistill_resources.errors import ModelError
from deepdistill_resources.generation import VOLATILE, LazySession
from deepdistill_resources.lake import Lake
from deepdistill_resources.models import ModelStore, ServedOrigin
from deepdistill_resources.spread_generation import SpreadGeneration, StorePlace
from deepdistill_resources.verifiers.stored import VerdictStore
from deepdistill_resources.verifiers.suite import VerifierSuite


def build_assets(recipe: Recipe, partitions: Partitions) -> list[dg.AssetsDefinition]:
    """Return the assets of the responses room."""
    stage = Stage("responses", recipe)
    # A source and a teacher belong to their partitions alone: adding one must not make the others stale.
    versions = {
        str(dg.MultiPartitionKey({"source": source, "teacher": teacher})): _version(recipe, source, teacher)
        for source in recipe.sources
        for teacher in recipe.teachers
    }

    @stage.asset(
        schema=tables.RESPONSE,
        version=4,
        knobs=[recipe.seed, [recipe.responses.kind, recipe.responses.accept_score]],
        partitions_def=partitions.source_teacher,
        partition_versions=versions,
        kinds=("transformers", "parquet"),
        pool="gpu",
        checks=["passes_complete"],
    )
    def responses(
        context: dg.AssetExecutionContext,
        distillation_queries: pl.LazyFrame,
        existing_responses: pl.LazyFrame,
        teacher_models: pl.DataFrame,
        lake: Lake,
        model_store: ModelStore,
        engine: EngineResource,
        verifier_suite: VerifierSuite,
        compute: Compute,
    ) -> dg.MaterializeResult:
        """What a teacher wrote for each query of a source: n sampled responses, split into think and answer.

        Responses that came with the source are rows of the same table, with engine `imported`.
        """
        source, name = partition_of(context, "source"), partition_of(context, "teacher")
        complete = dg.AssetCheckResult(check_name="passes_complete", passed=True)
        version = _version(recipe, source, name)
        queries = QueryBlocks(distillation_queries if recipe.answers(source, name) else distillation_queries.head(0))
        if queries.ids.is_empty():
            return materialized(tables.empty(tables.RESPONSE), checks=[complete], partition_version=version)
        check_budget(queries.ids, name, recipe)
        pair = Pair(recipe, source, name, teacher_models["revision"][0])
        directory = f"source={source}/teacher={name}"
        settings = {"teacher": name, "revision": pair.revision, "style": recipe.teachers[name].style.fingerprint()}
        place = StorePlace(lake, f"_chunks/responses/{directory}", settings)
        store, spread = place.open(), _spread(pair, model_store, engine, compute, place)
        acceptance = _acceptance(recipe, lake, directory, verifier_suite)
        session = LazySession(partial(_open_session, pair, model_store, engine))
        try:
            work = Distillation(pair, queries, existing_responses, session, store, acceptance, context.log.info, spread)
            outcome = work.run()
        finally:
            acceptance.close()
            session.close()
        facts = response_facts(pair, queries.ids.height, outcome) | {"orphans_swept": len(store.sweep())}
        return materialized(
            outcome.rows,
            metadata=facts | (compute.facts() if spread else {}),
            checks=[passes_complete(pair, queries.ids.height, outcome)],
            volatile=VOLATILE,
            partition_version=version,
        )

    return stage.declared


def _version(recipe: Recipe, source: str, teacher: str) -> str:
    """Return what makes one source and teacher stale: all but the teacher's prices and description."""
    entry = recipe.teachers[teacher]
    settings = entry.model_dump(mode="json", exclude={"prompt_price", "completion_price", "description"})
    verified = recipe.responses.kind == "until_passed" or entry.existing_responses == "accept"
    verification = recipe.verification.model_dump(mode="json") if verified else None
    models = [origin.model_dump(mode="json") for origin in recipe.verification_models().values()] if verified else []
    prompts = recipe.judge_prompts() if verified else []
    return fingerprint([recipe.answers(source, teacher), settings, verification, models, *prompts])


def _acceptance(recipe: Recipe, lake: Lake, directory: str, verifier_suite: VerifierSuite) -> Acceptance:
    settings = recipe.verification_settings()
    return Acceptance(
        lambda: verifier_suite.open(settings),
        lambda identity: VerdictStore(lake, directory, settings, identity),
        Rule.of(recipe),
    )


def _spread(
    pair: Pair, model_store: ModelStore, engine: EngineResource, compute: Compute, place: StorePlace
) -> SpreadGeneration | None:
    """Return generation on a cluster, where there is one; a server is asked by one session, however large it is."""
    origin = pair.recipe.models[pair.recipe.teachers[pair.teacher].model]
    if not compute.spreads() or isinstance(origin, ServedOrigin):
        return None
    opening = partial(_open_session, pair, model_store, engine.for_one_core())
    return SpreadGeneration(compute, opening, engine.demand(), place, pair.recipe.responses.chunk_size)


def _open_session(pair: Pair, model_store: ModelStore, engine: EngineResource) -> GenerationSession:
    teacher = pair.recipe.teachers[pair.teacher]
    model = model_store.resolve(teacher.model, pair.recipe.models[teacher.model])
    if model.revision != pair.revision:  # keys name the revision: other weights must not answer under it
        raise ModelError(
            f"the weights of {teacher.model} changed.", f"materialize teacher_models {pair.teacher} again."
        )
    return engine.open(model, teacher.style)
