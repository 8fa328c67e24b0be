"""Supervised fine-tuning on several devices: the same training code in each process of `accelerate launch`."""

import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from deepdistill_resources.engines.prompting import PromptStyle
from deepdistill_resources.errors import MissingPackageError, TrainingError
from deepdistill_resources.trainers.base import Trainer, TrainingExample, TrainingParameters, TrainingReport
from deepdistill_resources.trainers.job import job_file
from deepdistill_resources.trainers.trl_trainer import TrlTrainer, finished_report

PROCESS = "deepdistill_resources.trainers.launched_process"
LOG, ERROR = "deepdistill| ", "deepdistill error| "  # how the processes' own lines begin among those of libraries
CONFIGS = Path(__file__).parent / "accelerate"
_LAST_LINES = 30


class LaunchedTrainer(Trainer):
    """Trains on all devices of this machine; with one device there is nothing to launch and the run stays in process.

    The loss is that of one process with the same global batch, but for the last batch of an epoch where it is not full:
    accelerate fills it up with samples from the beginning, so that every device has as many.

    Args:
        config: `ddp`, `fsdp`, `deepspeed` (the files in `trainers/accelerate/`), or the path of an accelerate config.
        processes: one per device; 0: as many as there are GPUs.
        threads: CPU threads of each process; None: its share of the cores.
        tensorboard: a directory for TensorBoard's event files; None: none are written.
    """

    config: str = "fsdp"
    processes: int = 0
    threads: int | None = None
    tensorboard: str | None = None

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

        Raises:
            TrainingError: as in one process, or a process that died; its last lines stand in the message.
            MissingPackageError: DeepSpeed is asked for, and not installed.
        """
        count = self.processes or _gpus()
        if count <= 1:
            alone = TrlTrainer(threads=self.threads, tensorboard=self.tensorboard)
            return alone.train(model, examples, parameters, work_directory, log, style)
        config = config_file(self.config)
        cores = len(os.sched_getaffinity(0))
        threads = self.threads or max(1, cores // count)
        arguments = {"threads": threads, "tensorboard": self.tensorboard}
        with job_file(model, examples, parameters, work_directory, style, arguments) as job:
            _launch(launch_command(config, count, job), threads, log)
        report = finished_report(work_directory)
        if report is None:
            raise TrainingError("the processes ended without a result.", "look at the run's log.")
        return report

    def probe(self) -> str:
        """See `Trainer.probe`."""
        count, config = self.processes or _gpus(), config_file(self.config)
        return super().probe() if count <= 1 else f"{count} processes, {config.name}"


def config_file(config: str) -> Path:
    """Return the accelerate config of a name or path; raises TrainingError or MissingPackageError."""
    if config == "deepspeed" and find_spec("deepspeed") is None:
        raise MissingPackageError("deepspeed is not installed.", "pip install deepspeed, or use config fsdp.")
    file = CONFIGS / f"{config}.yaml" if "/" not in config else Path(config)
    if not file.is_file():
        names = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
        raise TrainingError(f"no accelerate config {config!r}.", f"use {names}, or the path of a file.")
    return file


def launch_command(config: Path, processes: int, job: Path) -> list[str]:
    """Return the command that starts one process per device."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    # Port 0: two runs on one machine do not meet.
    return [*launcher, "--num_processes", str(processes), "--main_process_port", "0", "-m", PROCESS, str(job)]


def _launch(command: list[str], threads: int, log: Callable[[str], None]) -> None:
    """Run to the end, forwarding the processes' own lines; they end when this one does."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    log(f"launching {' '.join(command[2:])}")
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
    )
    last: deque[str] = deque(maxlen=_LAST_LINES)
    error = None
    try:
        for line in process.stdout or ():
            if line.startswith(LOG):
                log(line.removeprefix(LOG).rstrip("\n"))
            elif line.startswith(ERROR):
                error = error or json.loads(line.removeprefix(ERROR))
            else:
                last.append(line)
        code = process.wait()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if error:
        raise TrainingError(error["message"], error["fix"])
    if code:
        raise TrainingError(f"a training process ended with exit code {code}: {''.join(last)}")


def _gpus() -> int:
    import torch

    return int(torch.cuda.device_count())
