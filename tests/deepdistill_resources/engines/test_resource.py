import importlib.util
from pathlib import Path

import pytest

from deepdistill_resources.engines.openai import OpenAIEngine
from deepdistill_resources.engines.prompting import PromptStyle
from deepdistill_resources.engines.resource import EngineResource
from deepdistill_resources.engines.transformers import TransformersEngine
from deepdistill_resources.engines.vllm import VllmEngine
from deepdistill_resources.errors import DeepDistillError, EngineError
from deepdistill_resources.models import ResolvedModel
from deepdistill_resources.profiles import PROFILES, read_environment

_SPEC = importlib.util.spec_from_file_location("faulty_server", Path(__file__).parent / "faulty_server.py")
faulty = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(faulty)


def resolved(path):
    return ResolvedModel("tiny", path, "r1", None, "CC0-1.0", "made here")


def served(url):
    return ResolvedModel("far", None, "r1", None, "MIT", "served", served_name=faulty.MODEL, base_url=url)


def test_the_resource_chooses_the_engine(tiny_model):
    assert isinstance(EngineResource()._engine(served("http://127.0.0.1:9/v1")), OpenAIEngine)
    assert isinstance(EngineResource(default="vllm")._engine(resolved(tiny_model)), VllmEngine)
    assert isinstance(EngineResource()._engine(resolved(tiny_model)), TransformersEngine)


def test_a_probe_says_who_answered(tiny_model):
    assert EngineResource().probe(resolved(tiny_model)).startswith("transformers ")
    with faulty.faulty_server() as url:
        assert "answered for far" in EngineResource().probe(served(url))


def test_a_probe_of_a_server_that_fails_gives_its_reason():
    engine = EngineResource(max_attempts=1)
    style = PromptStyle(suffixes={"other": " fault:always_broken "})
    with faulty.faulty_server() as url, pytest.raises(EngineError, match=r"does not answer for far: HTTP 500"):
        engine.probe(served(url), style)


def test_the_environment_says_how_many_gpus_a_model_is_spread_over(tmp_path):
    environment = {"DEEPDISTILL_HOME": str(tmp_path), "DEEPDISTILL_TENSOR_PARALLEL": "8"}
    engine = PROFILES["gpu"].resources(read_environment(environment), "digits")["engine"]
    assert (engine.default, engine.tensor_parallel_size, engine.pipeline_parallel_size) == ("vllm", 8, 1)
    with pytest.raises(DeepDistillError, match="'two' is no whole number"):
        read_environment({"DEEPDISTILL_PIPELINE_PARALLEL": "two"})


def test_the_environment_says_how_a_server_is_asked(tmp_path):
    environment = {"DEEPDISTILL_HOME": str(tmp_path)}
    engine = PROFILES["gpu"].resources(read_environment(environment), "digits")["engine"]
    assert (engine.max_concurrency, engine.samples_per_request) == (64, 1)
    environment |= {"DEEPDISTILL_CONCURRENCY": "512", "DEEPDISTILL_SAMPLES_PER_REQUEST": "4"}
    engine = PROFILES["gpu"].resources(read_environment(environment), "digits")["engine"]
    assert (engine.max_concurrency, engine.samples_per_request) == (512, 4)
