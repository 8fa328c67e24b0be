"""Which machines do the work: the profiles, and the only place that reads the environment.

Variables (all optional):
    DEEPDISTILL_PROFILE   embedded (default) | gpu | cluster | ray
    DEEPDISTILL_RECIPE    name of a recipe that ships with the project, or a path (default: quickstart)
    DEEPDISTILL_HOME      everything that is written (default: .deepdistill beside the clone)
    DEEPDISTILL_LAKE      where tables live, a directory or s3://bucket/prefix (default: <home>/<recipe>/lake)
    DEEPDISTILL_MODELS    converted model weights (default: <home>/models)
    DAGSTER_HOME          Dagster's own store (default: <home>/<recipe>/dagster)
    DEEPDISTILL_ENGINE    transformers | vllm: what generates for models without a server (default: the profile's)
    DEEPDISTILL_TRAINER   fsdp (default) | ddp | deepspeed, or an accelerate config file: how several GPUs train;
                          ray: fsdp on the workers of a Ray cluster, as with the profile ray
    DEEPDISTILL_RAY_ADDRESS   cluster of the profile ray, host:port or ray://host:port (default: one is started here)
    DEEPDISTILL_TENSORBOARD   a directory for TensorBoard's event files (default: none are written)
    DEEPDISTILL_STEPS     processes (default) | pods: where the profile `cluster` runs the steps of a run
    DEEPDISTILL_TENSOR_PARALLEL, DEEPDISTILL_PIPELINE_PARALLEL   GPUs that vLLM spreads a model over (default: 1)
    DEEPDISTILL_CONCURRENCY   requests in flight at a server, at most (default: 64)
    DEEPDISTILL_SAMPLES_PER_REQUEST   passes of a query in one request to a server (default: 1)
    DAGSTER_POSTGRES_URL, DAGSTER_LOG_BUCKET   where `docker/dagster.cluster.yaml` keeps events and step logs
    DEEPDISTILL_ALERT_WEBHOOK   where a failed run is told (Slack or alike); a secret (default: nowhere)
    AWS_ENDPOINT_URL, AWS_REGION   the S3 server of an s3:// lake; credentials are read by the S3 client itself
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import dagster as dg

from deepdistill_resources.alerts import Webhook
from deepdistill_resources.errors import DeepDistillError
from deepdistill_resources.io_managers import ParquetIOManager
from deepdistill_resources.lake import Lake
from deepdistill_resources.models import ModelStore
from deepdistill_resources.pods import one_pod_per_step

CLONE = Path(__file__).resolve().parents[1]
DEFAULT_RECIPE = "quickstart"
EngineName = Literal["transformers", "vllm"]
Steps = Literal["processes", "pods"]


@dataclass(frozen=True)
class Environment:
    """What the environment variables say, with defaults filled in."""

    profile: str
    recipe: str
    home: Path
    lake: str | None = None
    models: str | None = None
    dagster_home: str | None = None
    endpoint_url: str | None = None
    region_name: str = "us-east-1"
    engine: EngineName | None = None
    steps: Steps = "processes"
    trainer: str = "fsdp"
    tensorboard: str | None = None
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    concurrency: int = 64
    samples_per_request: int = 1
    ray_address: str | None = None
    postgres_url: str | None = field(default=None, repr=False)  # holds a password
    log_bucket: str | None = None
    alert_webhook: Webhook | None = None

    def lake_root(self, recipe: str) -> str:
        """Return where the tables of a recipe live."""
        return self.lake or str(self.home / recipe / "lake")

    def dagster_directory(self, recipe: str) -> Path:
        """Return DAGSTER_HOME for a recipe; two recipes never share one by default."""
        return Path(self.dagster_home) if self.dagster_home else self.home / recipe / "dagster"

    def model_directory(self) -> str:
        """Return where converted weights are kept; recipes share it."""
        return self.models or str(self.home / "models")

    def variables(self, recipe: str) -> dict[str, str]:
        """Return the variables that give a child process (the web server) the same environment."""
        return {
            "DEEPDISTILL_PROFILE": self.profile,
            "DEEPDISTILL_RECIPE": self.recipe,
            "DEEPDISTILL_HOME": str(self.home),
            "DAGSTER_HOME": str(self.dagster_directory(recipe)),
            "DAGSTER_DISABLE_TELEMETRY": "1",
        }


def read_environment(variables: Mapping[str, str] | None = None) -> Environment:
    """Read the environment once; empty variables count as not set."""
    values = {name: value for name, value in (os.environ if variables is None else variables).items() if value}
    return Environment(
        profile=values.get("DEEPDISTILL_PROFILE", "embedded"),
        recipe=values.get("DEEPDISTILL_RECIPE", DEFAULT_RECIPE),
        home=Path(values.get("DEEPDISTILL_HOME", CLONE / ".deepdistill")).expanduser().absolute(),
        lake=values.get("DEEPDISTILL_LAKE"),
        models=values.get("DEEPDISTILL_MODELS"),
        dagster_home=values.get("DAGSTER_HOME"),
        endpoint_url=values.get("AWS_ENDPOINT_URL_S3", values.get("AWS_ENDPOINT_URL")),
        region_name=values.get("AWS_REGION", values.get("AWS_DEFAULT_REGION", "us-east-1")),
        engine=_engine_named(values["DEEPDISTILL_ENGINE"]) if "DEEPDISTILL_ENGINE" in values else None,
        steps=_steps_named(values.get("DEEPDISTILL_STEPS", "processes")),
        trainer=values.get("DEEPDISTILL_TRAINER", "fsdp"),
        tensorboard=values.get("DEEPDISTILL_TENSORBOARD"),
        tensor_parallel=_count(values, "DEEPDISTILL_TENSOR_PARALLEL"),
        pipeline_parallel=_count(values, "DEEPDISTILL_PIPELINE_PARALLEL"),
        concurrency=_count(values, "DEEPDISTILL_CONCURRENCY", 64),
        samples_per_request=_count(values, "DEEPDISTILL_SAMPLES_PER_REQUEST"),
        ray_address=values.get("DEEPDISTILL_RAY_ADDRESS"),
        postgres_url=values.get("DAGSTER_POSTGRES_URL"),
        log_bucket=values.get("DAGSTER_LOG_BUCKET"),
        alert_webhook=_webhook(values.get("DEEPDISTILL_ALERT_WEBHOOK")),
    )


def _engine_named(name: str) -> EngineName:
    allowed: tuple[EngineName, ...] = get_args(EngineName)
    for engine in allowed:
        if name == engine:
            return engine
    raise DeepDistillError(f"DEEPDISTILL_ENGINE: no engine named {name!r}.", f"use one of {', '.join(allowed)}.")


def _steps_named(name: str) -> Steps:
    allowed: tuple[Steps, ...] = get_args(Steps)
    for steps in allowed:
        if name == steps:
            return steps
    raise DeepDistillError(f"DEEPDISTILL_STEPS: {name!r} is neither.", f"use one of {', '.join(allowed)}.")


def _webhook(url: str | None) -> Webhook | None:
    if url is not None and not url.startswith(("https://", "http://")):
        raise DeepDistillError("DEEPDISTILL_ALERT_WEBHOOK: no http(s) address.", "give the whole address.")
    return Webhook(url) if url else None


def _count(values: Mapping[str, str], name: str, default: int = 1) -> int:
    text = values.get(name, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise DeepDistillError(f"{name}: {text!r} is no whole number from 1 on.", "use 1 or more.")
    return int(text)


def lake_of(environment: Environment, recipe: str) -> Lake:
    """Return the lake of a recipe."""
    return Lake(
        root=environment.lake_root(recipe), endpoint_url=environment.endpoint_url, region_name=environment.region_name
    )


@dataclass(frozen=True)
class Profile:
    """One kind of machine: its resources by parameter name, and the executor of its runs.

    The executor is told the names of the steps that need a GPU.
    """

    description: str
    resources: Callable[[Environment, str], dict[str, Any]]
    executor: Callable[[Environment, Sequence[str]], dg.ExecutorDefinition]


def _resources(default_engine: EngineName, environment: Environment, recipe: str) -> dict[str, Any]:
    from deepdistill_resources.compute import LocalCompute, RayCompute
    from deepdistill_resources.embedders import Embedder
    from deepdistill_resources.engines.resource import EngineResource
    from deepdistill_resources.verifiers.suite import VerifierSuite

    lake = lake_of(environment, recipe)
    model_store = ModelStore(directory=environment.model_directory())
    engine = EngineResource(
        default=environment.engine or default_engine,
        tensor_parallel_size=environment.tensor_parallel,
        pipeline_parallel_size=environment.pipeline_parallel,
        max_concurrency=environment.concurrency,
        samples_per_request=environment.samples_per_request,
    )
    return {
        "lake": lake,
        "io_manager": ParquetIOManager(lake=lake),
        "model_store": model_store,
        "engine": engine,
        "compute": RayCompute(address=environment.ray_address) if environment.profile == "ray" else LocalCompute(),
        "embedder": Embedder(),
        "verifier_suite": VerifierSuite(engine=engine, model_store=model_store),
        "trainer": _trainer(environment),
    }


def _trainer(environment: Environment) -> Any:
    from deepdistill_resources.trainers.launched_trainer import LaunchedTrainer
    from deepdistill_resources.trainers.ray_trainer import RayTrainer
    from deepdistill_resources.trainers.trl_trainer import TrlTrainer

    if "ray" in (environment.profile, environment.trainer):
        config = "fsdp" if environment.trainer == "ray" else environment.trainer
        return RayTrainer(config=config, address=environment.ray_address, tensorboard=environment.tensorboard)
    if environment.profile == "embedded":
        return TrlTrainer(tensorboard=environment.tensorboard)
    return LaunchedTrainer(config=environment.trainer, tensorboard=environment.tensorboard)


def _in_process(environment: Environment, gpu_steps: Sequence[str]) -> dg.ExecutorDefinition:
    return dg.in_process_executor


def _one_process_per_step(environment: Environment, gpu_steps: Sequence[str]) -> dg.ExecutorDefinition:
    # Spawned, never forked: polars and CUDA both break in a forked child; a step that ends gives its GPU memory back.
    return dg.multiprocess_executor.configured({"start_method": {"spawn": {}}}, name="one_process_per_step")


def _processes_or_pods(environment: Environment, gpu_steps: Sequence[str]) -> dg.ExecutorDefinition:
    if environment.steps == "processes":
        return _one_process_per_step(environment, gpu_steps)
    return one_pod_per_step(environment.tensor_parallel * environment.pipeline_parallel, gpu_steps)


PROFILES: dict[str, Profile] = {
    "embedded": Profile(
        "CPU, local directory, SQLite, small models in process", partial(_resources, "transformers"), _in_process
    ),
    "gpu": Profile("one GPU machine, vLLM, one process per step", partial(_resources, "vllm"), _one_process_per_step),
    "cluster": Profile(
        "S3, Postgres, one process or pod per step", partial(_resources, "transformers"), _processes_or_pods
    ),
    "ray": Profile(
        "as cluster, and the work of a partition on a Ray cluster",
        partial(_resources, "transformers"),
        _one_process_per_step,
    ),
}


def profile_named(name: str) -> Profile:
    """Return a profile; raises DeepDistillError with the allowed names."""
    if name not in PROFILES:
        raise DeepDistillError(f"no profile named {name!r}.", f"use one of {', '.join(PROFILES)}.")
    return PROFILES[name]
