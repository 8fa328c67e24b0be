"""The launch on several devices, tried with two CPU processes: the same command, the same config files."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepdistill_resources.errors import MissingPackageError, TrainingError
from deepdistill_resources.trainers.launched_trainer import CONFIGS, LaunchedTrainer, launch_command

_spec = importlib.util.spec_from_file_location("trl_tests", Path(__file__).with_name("test_trl_trainer.py"))
one = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(one)


def launched(model, work, config="ddp", parameters=one.PARAMETERS, log=lambda line: None, rows=None):
    trainer = LaunchedTrainer(config=config, processes=2, threads=1)
    return trainer.train(model, rows or one.examples(), parameters, work, log, one.STYLE)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp", "fsdp"])
def test_two_processes_train_like_one(tiny_model, tmp_path, config):
    # On CPUs accelerate leaves the sharding of fsdp.yaml out (the next test shards); launch and file are the real ones.
    lines = []
    rows = [*one.examples(7), one.TrainingExample("long", ({"role": "user", "content": "1234+1"},), "1235", "math")] * 4
    alone = one.train(tiny_model, tmp_path / "one", rows=rows)
    both = launched(tiny_model, tmp_path / "two", config, log=lines.append, rows=rows)
    assert both.devices == 2 and both.steps == alone.steps
    assert [p["loss"] for p in both.curve] == pytest.approx([p["loss"] for p in alone.curve], rel=5e-3)
    assert [p["grad_norm"] for p in both.curve] == pytest.approx([p["grad_norm"] for p in alone.curve], rel=5e-2)
    assert any(f"step {both.steps}/" in line for line in lines)
    assert not list(tmp_path.glob("*.job.json")) and not list(both.checkpoint.glob("*.bin"))
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(both.checkpoint)


@pytest.mark.slow
def test_a_sharded_model_trains_like_a_whole_one_and_resumes_to_the_same_weights(tiny_model, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    monkeypatch.setattr("deepdistill_resources.trainers.launched_trainer.PROCESS", "sharded_process")
    lines, often = [], one.PARAMETERS.model_copy(update={"save_steps": 15})
    alone = one.train(tiny_model, tmp_path / "one", parameters=often)
    sharded = launched(tiny_model, tmp_path / "two", "fsdp", often, lines.append)
    (held,) = [line.split() for line in lines if line.startswith("holds")]
    assert 0.4 < int(held[1]) / int(held[3]) < 0.6, "one of two processes holds one half"
    assert [p["loss"] for p in sharded.curve] == pytest.approx([p["loss"] for p in alone.curve], rel=1e-3)
    whole, gathered = weights(alone.checkpoint), weights(sharded.checkpoint)
    assert gathered.keys() == whole.keys()
    for name, tensor in whole.items():
        assert gathered[name].dtype == tensor.dtype
        assert (gathered[name] - tensor).abs().max() < 1e-4, name
    assert "FSDP" not in (sharded.checkpoint / "config.json").read_text()
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(sharded.checkpoint)

    shutil.rmtree(sharded.checkpoint)  # as a kill after step 15 leaves it
    shutil.rmtree(tmp_path / "two" / f"checkpoint-{sharded.steps}")
    (tmp_path / "two" / "report.json").unlink()
    again = launched(tiny_model, tmp_path / "two", "fsdp", often, lines.append)
    assert any("resuming from checkpoint-15" in line for line in lines)
    assert all(tensor.equal(gathered[name]) for name, tensor in weights(again.checkpoint).items())


def weights(checkpoint):
    from safetensors.torch import load_file

    return {name: value for file in checkpoint.glob("*.safetensors") for name, value in load_file(file).items()}


RUN = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_launched_trainer import launched, one
longer = one.PARAMETERS.model_copy(update={{"save_steps": 20, "epochs": 30}})
launched(Path({model!r}), Path({work!r}), parameters=longer,
         log=lambda line: print(line, flush=True))
"""


def start(model, work):
    code = RUN.format(tests=os.path.dirname(__file__), model=str(model), work=str(work))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=os.getcwd())


@pytest.mark.slow
def test_a_killed_launch_leaves_no_process_and_resumes(tiny_model, tmp_path):
    killed = start(tiny_model, tmp_path / "work")
    for line in killed.stdout:
        if line.startswith("step 25/"):
            killed.send_signal(signal.SIGKILL)
            break
    killed.wait()
    deadline = time.monotonic() + 60
    while _processes_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not _processes_of(tmp_path)
    again = start(tiny_model, tmp_path / "work")
    output = again.communicate()[0]
    assert again.returncode == 0 and "resuming from checkpoint-" in output


def _processes_of(directory):
    found = subprocess.run(["pgrep", "-f", str(directory)], capture_output=True, text=True).stdout.split()
    return [pid for pid in found if int(pid) != os.getpid()]


@pytest.mark.slow
def test_what_is_wrong_in_a_process_is_said_by_the_launcher(tiny_model, tmp_path):
    odd = one.PARAMETERS.model_copy(update={"global_batch_size": 6})
    with pytest.raises(TrainingError, match=r"6 is not a multiple of per_device_batch_size 4 x 2 devices"):
        launched(tiny_model, tmp_path / "work", parameters=odd)


def test_one_device_needs_no_launch(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("deepdistill_resources.trainers.launched_trainer._launch", None)
    trainer = LaunchedTrainer(threads=1)
    short = one.PARAMETERS.model_copy(update={"epochs": 1})
    assert trainer.train(tiny_model, one.examples(8), short, tmp_path / "work", print, one.STYLE).devices == 1


@pytest.mark.parametrize("name", ["ddp", "fsdp", "deepspeed"])
def test_accelerate_reads_the_config_files(name):
    from accelerate.commands.config.config_args import ClusterConfig
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    file = CONFIGS / f"{name}.yaml"
    assert isinstance(ClusterConfig.from_yaml_file(str(file)), ClusterConfig)
    arguments = launch_command_parser().parse_args(launch_command(file, 8, Path("job.json"))[3:])
    chosen, _, _ = _validate_launch_command(arguments)
    assert chosen.num_processes == 8
    assert (chosen.multi_gpu, chosen.use_fsdp, chosen.use_deepspeed) == tuple(
        name == kind for kind in ("ddp", "fsdp", "deepspeed")
    )
    if name == "fsdp":
        assert chosen.fsdp_version == 2 and chosen.fsdp_state_dict_type == "FULL_STATE_DICT"


def test_a_missing_package_or_config_is_named(tiny_model, tmp_path):
    if importlib.util.find_spec("deepspeed") is None:
        with pytest.raises(MissingPackageError, match="deepspeed is not installed"):
            launched(tiny_model, tmp_path / "work", "deepspeed")
    with pytest.raises(TrainingError, match="use ddp, deepspeed, fsdp"):
        launched(tiny_model, tmp_path / "work", "zero")


def test_it_tells_before_a_run_how_it_would_be_launched():
    assert LaunchedTrainer(config="ddp", processes=2).probe() == "2 processes, ddp.yaml"
    assert LaunchedTrainer(processes=1).probe() == "in this process"
    with pytest.raises(TrainingError, match="no accelerate config 'fsdpp'"):
        LaunchedTrainer(config="fsdpp", processes=1).probe()


@pytest.mark.parametrize("config", ["ddp", "fsdp", "deepspeed"])
def test_accelerate_knows_every_key_of_our_configs(config):
    from accelerate.commands.config.config_args import load_config_from_file

    loaded = load_config_from_file(str(CONFIGS / f"{config}.yaml"))
    kinds = {"ddp": "MULTI_GPU", "fsdp": "FSDP", "deepspeed": "DEEPSPEED"}
    assert loaded.distributed_type == kinds[config] and loaded.num_machines == 1
