"""vLLM in a worker of `RayCompute` beside ray.data.llm's vLLM processor, on one cluster of this machine.

    python tests/benchmarks/ray_vllm.py MODEL_DIRECTORY [--few 64] [--many 320] [--tokens 64] [--rounds 3]

Both get the same prompts, seeds and sampling, one engine each, and write their responses to disk: ours as chunks that
the worker commits, ray.data.llm as parquet. Tokens per second are those of the further requests, (tokens of many -
tokens of few) / (seconds of many - seconds of few), so that the start of cluster and engine is left out. Needs vLLM.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from deepdistill_resources.chunk_store import ChunkStore
from deepdistill_resources.compute import Demand, RayCompute
from deepdistill_resources.engines.base import GenerationRequest, GenerationSession, SamplingParameters
from deepdistill_resources.engines.prompting import PromptStyle
from deepdistill_resources.engines.vllm import VllmEngine, VllmSettings
from deepdistill_resources.lake import Lake
from deepdistill_resources.models import ResolvedModel
from deepdistill_resources.spread_generation import SpreadGeneration, StorePlace

LENGTH = 1024  # tokens, of prompt and response
BATCH = 64  # requests of ray.data.llm; its default is 32


@dataclass(frozen=True)
class OpenVllm:
    """Loads the model where it is called."""

    model: Path

    def __call__(self) -> GenerationSession:
        """Return a session."""
        model = ResolvedModel("benchmark", self.model, "r1", None, "unknown", "directory")
        return VllmEngine(VllmSettings(max_model_len=LENGTH, enforce_eager=True)).open(model, PromptStyle())


def requests(count: int) -> list[GenerationRequest]:
    """Return as many short questions."""
    texts = (f"What is {n} + {n + 1}?" for n in range(count))
    return [GenerationRequest(str(n), ({"role": "user", "content": text},), "math", n) for n, text in enumerate(texts)]


def ours(model: Path, count: int, tokens: int, directory: str) -> int:
    """Generate in a worker of RayCompute, which commits chunks; return the tokens."""
    place = StorePlace(Lake(root=directory), "_chunks/benchmark", {"count": count})
    compute, sampling = (
        RayCompute(max_workers=1),
        SamplingParameters(temperature=0.8, top_p=0.95, max_new_tokens=tokens),
    )
    spread = SpreadGeneration(compute, OpenVllm(model), Demand(), place, chunk_size=BATCH)
    store: ChunkStore = place.open()
    for _ in spread.generate(store, [(sampling, requests(count))], count, lambda line: None):
        pass
    return int(store.read([each.key for each in requests(count)])["completion_tokens"].sum())


def ray_data_llm(model: Path, count: int, tokens: int, directory: str) -> int:
    """Generate with ray.data.llm and write parquet; return the tokens."""
    import polars as pl
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = [
        {"prompt": PromptStyle().render([dict(item) for item in each.messages], each.category, tokenizer), "seed": n}
        for n, each in enumerate(requests(count))
    ]
    config = vLLMEngineProcessorConfig(
        model_source=str(model),
        engine_kwargs={
            "max_model_len": LENGTH,
            "enforce_eager": True,
            "dtype": "float32",
            "enable_chunked_prefill": False,  # as ours on a CPU
        },
        batch_size=BATCH,
        concurrency=1,
        chat_template_stage={"enabled": False},
        tokenize_stage={"enabled": False},
        detokenize_stage={"enabled": False},
        log_engine_metrics=False,
        placement_group_config={"bundles": [{"CPU": 1}]},
    )
    sampling = {"temperature": 0.8, "top_p": 0.95, "max_tokens": tokens, "logprobs": 0}
    processor = build_processor(
        config,
        preprocess=lambda row: {"prompt": row["prompt"], "sampling_params": {**sampling, "seed": int(row["seed"])}},
        postprocess=lambda row: {"text": row["generated_text"], "tokens": row["num_generated_tokens"]},
    )
    processor(ray.data.from_items(rows)).write_parquet(directory)
    return int(pl.read_parquet(f"{directory}/*.parquet")["tokens"].sum())


def timed(what: str, model: Path, count: int, tokens: int, answer: multiprocessing.Queue) -> None:
    """Put tokens and seconds."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    with tempfile.TemporaryDirectory() as directory:
        started = time.perf_counter()
        made = {"ours": ours, "ray.data.llm": ray_data_llm}[what](model, count, tokens, directory)
        answer.put((made, time.perf_counter() - started))


def measured(*arguments: object) -> tuple[int, float]:
    """Run in a fresh process with a cluster of its own."""
    import ray_vllm  # this file by its name, so that workers find what it defines

    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=ray_vllm.timed, args=(*arguments, answer))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{arguments[0]} failed")
    result: tuple[int, float] = answer.get()
    return result


def main() -> None:
    """Print the rates of both, round by round, and the median of their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    for name, default in (("few", 64), ("many", 320), ("tokens", 64), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    ratios = []
    for _ in range(options.rounds):
        rates = {}
        for what in ("ours", "ray.data.llm"):
            few, many = (measured(what, options.model, count, options.tokens) for count in (options.few, options.many))
            rates[what] = (many[0] - few[0]) / (many[1] - few[1])
            print(
                f"{what}: {few[1]:.1f} s for {few[0]} tokens, {many[1]:.1f} s for {many[0]}; {rates[what]:.1f} a second"
            )
        ratios.append(rates["ours"] / rates["ray.data.llm"])
        print(f"ours {ratios[-1]:.3f} x ray.data.llm", flush=True)
    print(f"median of {len(ratios)} rounds: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
