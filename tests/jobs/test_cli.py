import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli import BUG, INTERRUPTED, OK, WRONG_USE, main

CLONE = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    for name in ("DEEPDISTILL_RECIPE", "DEEPDISTILL_PROFILE", "DEEPDISTILL_LAKE", "DAGSTER_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DEEPDISTILL_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize(
    ("arguments", "cause", "fix"),
    [
        (["run", "--recipe", "quikstart"], "no recipe named 'quikstart'", "quickstart"),
        (["run", "--recipe", "nowhere.yaml"], "nowhere.yaml: no such file", ""),
        (["run", "--profile", "laptop"], "no profile named 'laptop'", "embedded, gpu, cluster, ray"),
        (["why"], "give a query id or --text", "deepdistill why"),
        (["why", "abc"], "no raw query matches 'abc'", "deepdistill run"),
        (["doctor", "--profile", "laptop"], "no profile named 'laptop'", "embedded, gpu, cluster, ray"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line_with_the_fix(capsys, arguments, cause, fix):
    assert main(arguments) == WRONG_USE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and cause in line and fix in line


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("DEEPDISTILL_ENGINE", "llama", "use one of transformers, vllm"),
        ("DEEPDISTILL_STEPS", "threads", "use one of processes, pods"),
        ("DEEPDISTILL_TENSOR_PARALLEL", "two", "use 1 or more"),
        ("DEEPDISTILL_ALERT_WEBHOOK", "hooks.example", "give the whole address"),
    ],
)
def test_a_variable_that_cannot_be_is_one_line_with_the_fix_too(capsys, monkeypatch, name, value, fix):
    monkeypatch.setenv(name, value)
    assert main(["recipes"]) == WRONG_USE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {name}: ") and f"Fix: {fix}" in line


def test_verbose_shows_the_traceback(capsys):
    main(["run", "--recipe", "quikstart", "--verbose"])
    assert "Traceback" in capsys.readouterr().err


def test_a_broken_recipe_names_file_key_and_allowed_values(capsys, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("name: mine\nsuorces: {}\n")
    assert main(["run", "--recipe", str(recipe)]) == WRONG_USE
    error = capsys.readouterr().err
    assert "mine.yaml" in error and "did you mean 'sources'" in error


def test_a_home_that_cannot_be_written_is_named(capsys, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("DEEPDISTILL_HOME", str(file))
    assert main(["ui"]) == WRONG_USE
    assert "DEEPDISTILL_HOME" in capsys.readouterr().err


def test_a_bug_is_one_line_too_and_has_its_own_exit_code(capsys, monkeypatch):
    def broken(*_):
        raise KeyError("oops")

    monkeypatch.setattr("jobs.screens.print_recipes", broken)
    assert main(["recipes"]) == BUG
    assert "unexpected error: KeyError" in capsys.readouterr().err


def test_ctrl_c_says_how_to_continue(capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("jobs.screens.print_recipes", interrupted)
    assert main(["recipes"]) == INTERRUPTED
    assert "continues" in capsys.readouterr().err


def test_recipes_lists_every_recipe_and_what_it_needs(capsys):
    assert main(["recipes"]) == OK
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("quickstart", "digits", "deepdistill", "am-r1-distilled"))
    assert "needs:" in shown and "teachers" in shown


def test_the_ui_refuses_a_port_in_use(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["ui", "--port", str(port)]) == WRONG_USE
    assert f"--port {port + 1}" in capsys.readouterr().err


@pytest.mark.parametrize(("host", "warned"), [("0.0.0.0", True), ("127.0.0.1", False), ("localhost", False)])
def test_the_ui_warns_loudly_where_others_can_reach_it(capsys, monkeypatch, tmp_path, host, warned):
    monkeypatch.setenv("DEEPDISTILL_HOME", str(tmp_path))
    monkeypatch.setattr("os.execve", lambda *_: (_ for _ in ()).throw(SystemExit(0)))
    monkeypatch.setattr("os.chdir", lambda *_: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(SystemExit):
        main(["ui", "--host", host, "--port", str(port)])
    said = " ".join(capsys.readouterr().err.split())
    assert (f"whoever reaches {host} can run code on this machine" in said) is warned


def test_definitions_load_fast_and_without_heavy_libraries():
    code = (
        "import time, sys; t = time.perf_counter(); import jobs.definitions; "
        "heavy = {'torch', 'transformers', 'trl', 'vllm', 'numba', 'datasets', 'sentence_transformers'}; "
        "print(time.perf_counter() - t, sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=CLONE, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds, heavy = done.stdout.split(maxsplit=1)
    assert heavy.strip() == "[]"
    assert float(seconds) < 10  # 2 to 3 s on an idle machine; the limit leaves room for a busy one
