"""The generation engine as a Dagster resource: which engine answers, and how each one is set up."""

import time
from typing import Literal

from deepdistill_resources.compute import Demand
from deepdistill_resources.engines.base import (
    FINAL_STATUSES,
    Engine,
    GenerationRequest,
    GenerationSession,
    SamplingParameters,
)
from deepdistill_resources.engines.openai import OpenAIEngine
from deepdistill_resources.engines.prompting import PromptStyle
from deepdistill_resources.engines.server import ServerSettings
from deepdistill_resources.engines.transformers import TransformersEngine, TransformersSettings
from deepdistill_resources.engines.vllm import VllmEngine, VllmSettings
from deepdistill_resources.errors import EngineError
from deepdistill_resources.models import ResolvedModel
from deepdistill_resources.portable import PortableResource


class EngineResource(PortableResource):
    """Opens sessions: a served model on its server, any other one on the engine of this profile (`default`).

    `batch_size` is rows at once per transformers process; `processes` 0 means one per core; `device` is auto, cpu or
    cuda. `max_concurrency`, `max_attempts`, `timeout_seconds`, `patience_seconds` (see `ServerSettings`) and
    `samples_per_request` (see `OpenAIEngine`) concern servers; the others vLLM (see `VllmSettings`).
    """

    default: Literal["transformers", "vllm"] = "transformers"
    batch_size: int = 64
    processes: int = 0
    device: str = "auto"
    max_concurrency: int = 64
    max_attempts: int = 5
    timeout_seconds: float = 3600.0
    patience_seconds: float = 900.0
    samples_per_request: int = 1
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.9
    enforce_eager: bool = False

    def open(self, model: ResolvedModel, style: PromptStyle) -> GenerationSession:
        """Load the model, or reach its server.

        Raises:
            ModelError: no weights, or weights that the engine cannot load.
            EngineError: the server does not answer or serves another model.
            MissingPackageError: the engine is not installed.
        """
        return self._engine(model).open(model, style)

    def probe(self, model: ResolvedModel, style: PromptStyle | None = None) -> str:
        """Ask for one token and say who answered, how fast; raises what `open` raises, EngineError without an answer.

        On a model of ordinary size this loads the weights: seconds on a CPU, minutes on several GPUs.
        """
        started = time.monotonic()
        session = self.open(model, style or PromptStyle())
        request = GenerationRequest("probe", ({"role": "user", "content": "1+1="},), "other", seed=0)
        try:
            responses = list(session.generate([request], SamplingParameters(temperature=0, max_new_tokens=1)))
        finally:
            session.close()
        if not responses or responses[0].status not in FINAL_STATUSES:
            reason = (responses[0].error if responses else None) or "no reply"
            raise EngineError(f"{session.engine_name} does not answer for {model.name}: {reason}")
        seconds = time.monotonic() - started
        return f"{session.engine_name} {session.engine_version} answered for {model.name} in {seconds:.1f} s"

    def demand(self) -> Demand:
        """Return what one session for weights needs of its node when several share a cluster: GPUs, or one core."""
        gpus = self.tensor_parallel_size * self.pipeline_parallel_size if self.default == "vllm" else 0
        return Demand(cpus=1, gpus=gpus or float(self.device == "cuda"))

    def for_one_core(self) -> "EngineResource":
        """Return the same engine, for a worker among others on its node."""
        return self.model_copy(update={"processes": 1})

    def _engine(self, model: ResolvedModel) -> Engine:
        if model.served_name is not None:
            settings = ServerSettings(
                max_concurrency=self.max_concurrency,
                max_attempts=self.max_attempts,
                timeout_seconds=self.timeout_seconds,
                patience_seconds=self.patience_seconds,
            )
            return OpenAIEngine(settings, self.samples_per_request)
        if self.default == "vllm":
            return VllmEngine(
                VllmSettings(
                    tensor_parallel_size=self.tensor_parallel_size,
                    pipeline_parallel_size=self.pipeline_parallel_size,
                    max_model_len=self.max_model_len,
                    gpu_memory_utilization=self.gpu_memory_utilization,
                    enforce_eager=self.enforce_eager,
                )
            )
        return TransformersEngine(
            TransformersSettings(batch_size=self.batch_size, processes=self.processes, device=self.device)
        )
