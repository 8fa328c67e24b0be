"""Supervised fine-tuning on a Ray cluster: Ray Train starts the processes that `accelerate launch` starts elsewhere."""

import os
import queue
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from deepdistill_resources.compute import connect
from deepdistill_resources.engines.prompting import PromptStyle
from deepdistill_resources.errors import DeepDistillError, TrainingError
from deepdistill_resources.trainers.base import Trainer, TrainingExample, TrainingParameters, TrainingReport
from deepdistill_resources.trainers.job import job_file, run_job
from deepdistill_resources.trainers.launched_trainer import config_file, launch_command
from deepdistill_resources.trainers.trl_trainer import finished_report

STARTS = 15  # of a group of workers that finds no room: a minute each, so that a cluster has time to grow


class RayTrainer(Trainer):
    """Trains on the workers of a Ray cluster: the same code and accelerate configs as `LaunchedTrainer`.

    A worker that is lost ends all of them; they start again from the last whole checkpoint (`save_steps`). Checkpoints,
    weights and job are files, so all nodes must see the work directory and the model under the same paths.

    Args:
        config: `ddp`, `fsdp`, `deepspeed` (the files in `trainers/accelerate/`), or the path of an accelerate config.
        address: of the cluster; None: one is started on this machine.
        processes: one per device; 0: as many as the cluster has GPUs.
        threads: CPU threads of each process.
        tensorboard: a directory for TensorBoard's event files; None: none are written.
        restarts: how often workers may be lost.
    """

    config: str = "fsdp"
    address: str | None = None
    processes: int = 0
    threads: int = 1
    tensorboard: str | None = None
    restarts: int = 3

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
            TrainingError: as in one process, workers that were lost again and again, or a node without the files.
            MissingPackageError: Ray or DeepSpeed is asked for, and not installed.
        """
        config, ray = config_file(self.config), connect(self.address, log)
        arguments = {"threads": self.threads, "tensorboard": self.tensorboard}
        with (
            job_file(model, examples, parameters, work_directory, style, arguments) as job,
            tempfile.TemporaryDirectory() as directory,
        ):
            gpus = int(ray.cluster_resources().get("GPU", 0))
            count = self.processes or gpus or 1
            log(f"training with {count} workers of a cluster with {gpus} GPUs")
            self._run(ray, count, gpus > 0, config, job, Path(directory), log)
        report = finished_report(work_directory)
        if report is None:
            raise TrainingError("the workers ended without a result.", "look at the run's log.")
        return report

    def probe(self) -> str:
        """See `Trainer.probe`."""
        return f"on the workers of a Ray cluster, {config_file(self.config).name}"

    def _run(
        self, ray: Any, count: int, gpu: bool, config: Path, job: Path, directory: Path, log: Callable[[str], None]
    ) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        messages = ray.remote(num_cpus=0, scheduling_strategy=here)(_Messages).remote()
        trainer = TorchTrainer(
            _work,
            train_loop_config={
                "job": str(job),
                "environment": accelerate_variables(config, count, job),
                "messages": messages,
            },
            # Gathering a sharded model on a GPU needs both.
            torch_config=TorchConfig(backend="cuda:nccl,cpu:gloo" if gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=count, use_gpu=gpu, resources_per_worker={"CPU": self.threads} | ({"GPU": 1} if gpu else {})
            ),
            run_config=RunConfig(
                name="training",
                storage_path=str(directory),
                failure_config=FailureConfig(max_failures=self.restarts, controller_failure_limit=STARTS),
            ),
        )
        _follow(ray, trainer, messages, log)


class _Messages:
    """An actor on the driver's node: what the workers say, until the driver reads it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.error: tuple[str, str | None] | None = None

    def say(self, line: str) -> None:
        self.lines.append(line)

    def take(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines

    def refuse(self, message: str, fix: str | None) -> None:
        self.error = self.error or (message, fix)

    def refusal(self) -> tuple[str, str | None] | None:
        return self.error


def _work(settings: dict[str, Any]) -> None:
    """Train, as one worker; a run that is refused is not tried again."""
    import ray

    job, messages = Path(settings["job"]), settings["messages"]
    if ray.get(messages.refusal.remote()):
        return
    os.environ.update(settings["environment"])
    first = os.environ["RANK"] == "0"
    try:
        if not job.is_file():
            raise TrainingError(
                f"a node of the cluster does not see {job.parent}.",
                "put DEEPDISTILL_HOME on storage that all nodes share, under the same path.",
            )
        run_job(job, lambda line: messages.say.remote(line) if first else None)
        ray.get(messages.refusal.remote())  # by now all that was said has arrived
    except DeepDistillError as error:
        if error.__cause__ is None:  # else the death of another worker may be the cause
            ray.get(messages.refuse.remote(error.message, error.fix))
        raise


def _follow(ray: Any, trainer: Any, messages: Any, log: Callable[[str], None]) -> None:
    """Run to the end and forward what the workers say; Ray's own handling of Ctrl-C stays out of this process."""
    ended: queue.Queue[Exception | None] = queue.Queue()
    threading.Thread(target=_fit, args=(trainer, ended), daemon=True).start()
    waiting = True
    while waiting:
        with suppress(queue.Empty):
            failure, waiting = ended.get(timeout=0.2), False
        for line in ray.get(messages.take.remote()):
            log(line)
    refusal = ray.get(messages.refusal.remote())
    if refusal:
        raise TrainingError(*refusal)
    if failure is not None:
        raise TrainingError(f"training on Ray failed: {failure}") from failure


def _fit(trainer: Any, ended: "queue.Queue[Exception | None]") -> None:
    try:
        trainer.fit()
        ended.put(None)
    except Exception as error:  # noqa: BLE001 - goes to the thread that waits
        ended.put(error)


def accelerate_variables(config: Path, processes: int, job: Path) -> dict[str, str]:
    """Return the variables by which `accelerate launch` tells its processes what a config file says."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    arguments = launch_command_parser().parse_args(launch_command(config, processes, job)[3:])
    arguments, _, _ = _validate_launch_command(arguments)
    values = prepare_deepspeed_cmd_env(arguments)[1] if arguments.use_deepspeed else prepare_multi_gpu_env(arguments)
    return {name: value for name, value in values.items() if name.startswith(("ACCELERATE_", "FSDP_"))}
