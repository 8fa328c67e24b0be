"""What a trainer is given and gives back."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import dagster as dg
from pydantic import BaseModel, ConfigDict

from deepdistill_resources.engines.prompting import PromptStyle


class TrainingParameters(BaseModel):
    """Hyper-parameters of one SFT run (DeepDistill section 4)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: float
    epochs: float
    global_batch_size: int = 64
    per_device_batch_size: int = 1
    max_length: int = 32768
    packing: bool = False
    warmup_ratio: float = 0.05
    weight_decay: float = 0.0
    precision: str = "bf16"  # bf16 | fp32
    gradient_checkpointing: bool = False
    seed: int = 0
    save_steps: int = 0  # 0: only at the end
    logging_steps: int = 1
    loss_on: Literal["response", "all"] = "response"  # of a conversation: its last response


@dataclass(frozen=True)
class TrainingExample:
    """One row: the messages before the response, and the response the loss is taken on."""

    example_id: str
    messages: tuple[dict[str, str], ...]  # ends with the user's message; a system message first where used
    response: str
    category: str = "other"  # selects the suffix and the worked examples of the prompt style


@dataclass(frozen=True)
class TrainingReport:
    """What came out of a run; `curve` has one dict per logged step (step, loss, learning_rate, grad_norm, ...)."""

    checkpoint: Path  # a directory in Hugging Face layout, safetensors
    steps: int
    final_loss: float  # mean over the last tenth of the logged steps
    tokens: int
    seconds: float
    curve: list[dict[str, float]]
    dropped: dict[str, str]  # example_id -> reason, e.g. "too_long"
    peak_memory_bytes: int
    estimated_memory_bytes: int = 0  # before the run, for one device
    estimated_seconds_per_step: float = 0.0
    devices: int = 1


class Trainer(dg.ConfigurableResource):
    """Runs supervised fine-tuning."""

    @abstractmethod
    def train(
        self,
        model: Path,
        examples: list[TrainingExample],
        parameters: TrainingParameters,
        work_directory: Path,
        log: Callable[[str], None],
        style: PromptStyle,
    ) -> TrainingReport:
        """Fine-tune `model` on `examples`; resumes from the last checkpoint in `work_directory` after a kill.

        Args:
            style: renders each example's messages exactly as evaluation renders a query; the loss is on the response.

        Raises:
            TrainingError: the run cannot fit or finish.
        """
        raise NotImplementedError

    def probe(self) -> str:
        """Return how a run would be started, for `doctor`; raises what would stop it before it starts."""
        return "in this process"
