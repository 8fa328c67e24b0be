"""A recipe with two benchmarks, and an engine that answers sums: the base wrongly, trained checkpoints rightly."""

import re

from deepdistill_assets.recipe import Recipe
from deepdistill_resources.engines.base import GenerationResponse, GenerationSession
from deepdistill_resources.engines.resource import EngineResource

TRAINING = {"learning_rate": 1e-3, "epochs": 1}


def make_recipe(path, **evaluation):
    return Recipe.model_validate(
        {
            "name": "tiny",
            "title": "Tiny",
            "description": "For tests",
            "models": {"tiny": {"kind": "directory", "path": str(path), "license": "CC0-1.0"}},
            "sources": {"sums": {"category": "math", "license": "CC0-1.0", "reader": "none"}},
            "teachers": {"teacher": {"model": "tiny", "style": {"mode": "few_shot"}}},
            "students": {"student": {"model": "tiny"}},
            "selection": {"stage1": {"teacher": "teacher"}, "stage2": {}},
            "training": {"stage1": TRAINING, "stage2": TRAINING},
            "evaluation": {
                "bootstrap_samples": 200,
                "include_teachers": ["teacher"],
                "sampling": {"temperature": 0.6, "max_new_tokens": 8},
                "benchmarks": {
                    "held-out": {
                        "category": "math",
                        "license": "CC0-1.0",
                        "reader": "none",
                        "samples": 2,
                        "claim": True,
                        "generator_of_training": True,
                        "reported": {"Ours-32B": 75.8},
                    },
                    "essays": {"category": "other", "license": "CC0-1.0", "reader": "none"},
                },
                **evaluation,
            },
        }
    )


class SumSession(GenerationSession):
    engine_name, engine_version = "sums", "1"

    def __init__(self, right):
        self.right = right

    def generate(self, requests, sampling):
        for request in requests:
            left, right = map(int, re.findall(r"\d+", request.messages[-1]["content"]))
            answer = left + right if self.right else left + right + (left % 4 > 0)
            text = f"<think>sum</think><answer>{answer}</answer>" if self.right else str(answer)
            yield GenerationResponse(request.key, text, "ok", "stop", 5, 7, None, 0.1)

    def perplexities(self, texts):
        return [None for _ in texts]


class KindSession(GenerationSession):
    """A judge that calls every answer right, but not in the control questions, which come second."""

    engine_name, engine_version = "kind", "1"

    def __init__(self):
        self.calls = 0

    def generate(self, requests, sampling):
        self.calls += 1
        reply = '{"correct": true}' if self.calls == 1 else '{"correct": false}'
        for request in requests:
            yield GenerationResponse(request.key, reply, "ok", "stop", 5, 7, None, 0.1)

    def perplexities(self, texts):
        return [None for _ in texts]


class KindJudge(EngineResource):
    def open(self, model, style):
        return KindSession()


OPENED = []


class SumEngine(EngineResource):
    def open(self, model, style):
        OPENED.append(model.name)
        return SumSession(right=model.name.startswith("student--"))
