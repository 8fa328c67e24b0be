"""Training on a Ray cluster: two real workers with CPUs only, the same result as one process."""

import builtins
import importlib.util
from pathlib import Path

import psutil
import pytest
from ray_cluster import ray_cluster

from deepdistill_resources.errors import MissingPackageError, TrainingError
from deepdistill_resources.profiles import profile_named, read_environment
from deepdistill_resources.trainers.launched_trainer import CONFIGS
from deepdistill_resources.trainers.ray_trainer import RayTrainer, accelerate_variables

_spec = importlib.util.spec_from_file_location("trl_tests", Path(__file__).with_name("test_trl_trainer.py"))
one = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(one)


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    with ray_cluster(nodes=2) as found:
        yield found


def on_ray(model, work, cluster, log=lambda line: None, parameters=one.PARAMETERS, rows=None, config="ddp"):
    trainer = RayTrainer(config=config, address=cluster and cluster.address, processes=2)
    return trainer.train(model, rows or one.examples(), parameters, work, log, one.STYLE)


@pytest.mark.slow
def test_two_workers_on_two_nodes_train_like_one_process(tiny_model, tmp_path, cluster):
    lines = []
    rows = [*one.examples(7), one.TrainingExample("long", ({"role": "user", "content": "1234+1"},), "1235", "math")] * 4
    alone = one.train(tiny_model, tmp_path / "one", rows=rows)
    both = on_ray(tiny_model, tmp_path / "two", cluster, lines.append, rows=rows)
    assert both.devices == 2 and both.steps == alone.steps and both.dropped == alone.dropped
    assert [p["loss"] for p in both.curve] == pytest.approx([p["loss"] for p in alone.curve], rel=5e-3)
    assert [p["grad_norm"] for p in both.curve] == pytest.approx([p["grad_norm"] for p in alone.curve], rel=5e-2)
    assert any(f"step {both.steps}/" in line for line in lines)
    assert not list(tmp_path.glob("*.job.json"))
    assert files(both.checkpoint) == files(alone.checkpoint) and files(tmp_path / "two") == files(tmp_path / "one")


def files(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_costs_the_steps_since_the_last_checkpoint(tiny_model, tmp_path, cluster):
    longer = one.PARAMETERS.model_copy(update={"save_steps": 20, "epochs": 40})
    undisturbed = on_ray(tiny_model, tmp_path / "undisturbed", cluster, parameters=longer)
    lines, killed = [], []

    def log(line):
        lines.append(line)
        if not killed and line.startswith("step 25/"):
            killed.append(worker_of(cluster))
            killed[0].kill()

    report = on_ray(tiny_model, tmp_path / "killed", cluster, log, longer)
    assert killed and any("resuming from checkpoint-" in line for line in lines)
    assert one.weights(report.checkpoint) == one.weights(undisturbed.checkpoint)
    assert [p["loss"] for p in report.curve] == [p["loss"] for p in undisturbed.curve]


def worker_of(cluster):
    raylets = [psutil.Process(node.all_processes["raylet"][0].process.pid) for node in cluster.nodes]
    children = [child for raylet in raylets for child in raylet.children()]
    return next(child for child in children if "".join(child.cmdline()[:1]).startswith("ray::RayTrainWorker"))


@pytest.mark.slow
def test_what_is_wrong_is_said_by_the_driver_and_not_tried_again(tiny_model, tmp_path, cluster):
    odd = one.PARAMETERS.model_copy(update={"global_batch_size": 6})
    with pytest.raises(TrainingError, match=r"6 is not a multiple of per_device_batch_size 4 x 2 devices") as caught:
        on_ray(tiny_model, tmp_path / "work", cluster, parameters=odd)
    assert caught.value.fix


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_workers_are_told_what_accelerate_would_tell_them(name):
    values = accelerate_variables(CONFIGS / f"{name}.yaml", 8, Path("job.json"))
    assert (values.get("ACCELERATE_USE_FSDP") == "true") == (name == "fsdp")
    if name == "fsdp":
        assert values["FSDP_VERSION"] == "2" and values["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"


@pytest.mark.parametrize(
    ("variables", "config"),
    [
        ({"DEEPDISTILL_PROFILE": "ray", "DEEPDISTILL_TRAINER": "ddp"}, "ddp"),
        ({"DEEPDISTILL_PROFILE": "gpu", "DEEPDISTILL_TRAINER": "ray"}, "fsdp"),
    ],
)
def test_profile_or_variable_choose_it(variables, config):
    environment = read_environment({**variables, "DEEPDISTILL_RAY_ADDRESS": "head:6379"})
    trainer = profile_named(environment.profile).resources(environment, "digits")["trainer"]
    assert isinstance(trainer, RayTrainer) and (trainer.config, trainer.address) == (config, "head:6379")


def test_without_ray_the_missing_package_is_named(tiny_model, tmp_path, monkeypatch):
    real = builtins.__import__

    def without_ray(name, *arguments, **options):
        if name.partition(".")[0] == "ray":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_ray)
    with pytest.raises(MissingPackageError, match="Ray is not installed"):
        on_ray(tiny_model, tmp_path / "work", None)
