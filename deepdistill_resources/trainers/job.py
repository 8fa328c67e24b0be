"""One training run as a file: what the launcher writes and each of the run's processes reads."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deepdistill_resources.engines.prompting import PromptStyle
from deepdistill_resources.trainers.base import TrainingExample, TrainingParameters, TrainingReport
from deepdistill_resources.trainers.trl_trainer import TrlTrainer


@contextmanager
def job_file(
    model: Path,
    examples: list[TrainingExample],
    parameters: TrainingParameters,
    work_directory: Path,
    style: PromptStyle,
    trainer: dict[str, Any],
) -> Iterator[Path]:
    """Write the file beside the work directory; it is gone afterwards.

    Args:
        trainer: arguments of `TrlTrainer`.
    """
    job = work_directory.with_name(f"{work_directory.name}.job.json").absolute()
    job.parent.mkdir(parents=True, exist_ok=True)
    values = {
        "model": str(model.absolute()),
        "examples": [asdict(example) for example in examples],
        "parameters": parameters.model_dump(mode="json"),
        "style": style.model_dump(mode="json"),
        "work_directory": str(work_directory.absolute()),
        "trainer": trainer,
    }
    job.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    try:
        yield job
    finally:
        job.unlink()


def run_job(job: Path, log: Callable[[str], None]) -> TrainingReport:
    """Train what the file says, as one of the processes of the run; raises what `TrlTrainer.train` raises."""
    values = json.loads(job.read_text(encoding="utf-8"))
    return TrlTrainer(**values["trainer"]).train(
        Path(values["model"]),
        [TrainingExample(**example) for example in values["examples"]],
        TrainingParameters.model_validate(values["parameters"]),
        Path(values["work_directory"]),
        log,
        PromptStyle.model_validate(values["style"]),
    )
