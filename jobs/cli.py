"""`deepdistill`: run | ui | why | quarantine | pin | recipes | doctor. A thin face over Dagster and the tables.

Exit codes: 0 done; 1 a partition failed, or a check of `doctor`; 2 something the user can correct (recipe, selection,
environment); 70 a bug; 130 stopped by Ctrl-C.
"""

import argparse
import dataclasses
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.markup import escape

from deepdistill_resources.errors import DeepDistillError
from deepdistill_resources.profiles import CLONE, Environment, lake_of, read_environment

LOOPBACK = "127.0.0.1"
NO_LOGIN = (
    "the UI has no login, and whoever reaches {host} can run code on this machine. "
    "Leave --host out, or put a proxy with a login before it (docs/security.md)."
)
OK, FAILED, WRONG_USE, BUG, INTERRUPTED = 0, 1, 2, 70, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    command: Callable[[argparse.Namespace, Environment], int] = options.command
    try:
        return command(options, _environment(options))
    except DeepDistillError as error:
        fix = f" [bold]Fix:[/] {escape(error.fix)}" if error.fix else ""
        errors.print(f"[bold red]error:[/] {escape(error.message)}{fix}")
        if options.verbose:
            errors.print(escape(getattr(error, "trace", "") or traceback.format_exc()))
        return FAILED if hasattr(error, "trace") else WRONG_USE
    except BaseException as error:  # the last line of defence: one line, never a bare traceback
        if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "DagsterExecutionInterruptedError":
            errors.print("stopped; what is materialized is kept, the same command continues.")
            return INTERRUPTED
        if isinstance(error, (SystemExit, GeneratorExit)):
            raise
        errors.print(f"[bold red]unexpected error:[/] {type(error).__name__}: {escape(str(error))}")
        errors.print(escape(traceback.format_exc()) if options.verbose else "--verbose shows where.")
        return BUG


def _environment(options: argparse.Namespace) -> Environment:
    """Return what the environment says; `--recipe` and `--profile` come first."""
    said = read_environment()
    return dataclasses.replace(said, recipe=options.recipe or said.recipe, profile=options.profile or said.profile)


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--recipe", help="name or YAML file (default: DEEPDISTILL_RECIPE, else quickstart)")
    shared.add_argument("--profile", help="embedded, gpu, cluster or ray (default: DEEPDISTILL_PROFILE, else embedded)")
    shared.add_argument("--verbose", action="store_true", help="show tracebacks")
    parser = argparse.ArgumentParser(prog="deepdistill", description="Graded, verified, decontaminated reasoning data.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace, Environment], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, parents=[shared], help=text, description=text)
        added.set_defaults(command=command)
        return added

    run = add("run", _run, "materialize what is missing or stale, and print the scoreboard")
    run.add_argument("--select", help="a Dagster asset selection, e.g. +scoreboard or group:queries (default: all)")
    run.add_argument("--force", action="store_true", help="materialize what is fresh, too")
    ui = add("ui", _ui, "open the Dagster UI on this machine")
    ui.add_argument("--port", type=int, default=3000)
    ui.add_argument("--host", default=LOOPBACK, help="where to listen; there is no login, so keep the default")
    why = add("why", _why, "tell the whole story of one query")
    why.add_argument("query_id", nargs="?", help="id of a query, or its beginning")
    why.add_argument("--text", help="find the query by a part of its text")
    quarantine = add("quarantine", _quarantine, "show malformed rows; write them to a file to be mended")
    quarantine.add_argument("source", nargs="?", help="a source of the recipe (default: all)")
    quarantine.add_argument("--reason", help="only rows with this reason, e.g. missing or missing:answer")
    quarantine.add_argument("--to", metavar="FILE", help="write a corrections file (JSONL); see docs/sources.md")
    pin = add("pin", _pin, "write the commits of all hub data sets and models into the recipe")
    pin.add_argument("--to", metavar="FILE", type=Path, help="write this file (default: the recipe's own)")
    add("recipes", _recipes, "list the recipes")
    add("doctor", _doctor, "check this machine for the chosen recipe and profile")
    return parser


def _run(options: argparse.Namespace, environment: Environment) -> int:
    from deepdistill_assets.recipe import load_recipe
    from jobs import run_log
    from jobs.build import build_definitions
    from jobs.dagster_home import open_instance, prepare
    from jobs.progress import duration, progress_on
    from jobs.runner import run

    recipe = load_recipe(environment.recipe)
    definitions = build_definitions(environment.profile, recipe)
    lake, home = lake_of(environment, recipe.name), prepare(environment.dagster_directory(recipe.name))
    log_file = environment.home / recipe.name / "run.log"
    with run_log.terminal_apart(log_file) as terminal:
        progress = progress_on(terminal)
        try:
            with run_log.recording(log_file, progress.message), open_instance(home) as instance:
                summary = run(definitions, instance, progress, lake, options.select, options.force)
        finally:
            progress.close()
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"\n{summary.materialized} partitions materialized, {summary.fresh} were fresh, {duration(summary.seconds)}."
    )
    _print_scoreboard(console, environment, recipe.name)
    named = "" if options.recipe is None else f" --recipe {options.recipe}"
    console.print(f"lake      {lake.root}")
    console.print(f"run log   {log_file}")
    console.print(f"UI        deepdistill ui{named}")
    return OK


def _print_scoreboard(console: Console, environment: Environment, recipe: str) -> None:
    from deepdistill_resources.io_managers import DATA_FILE

    lake = lake_of(environment, recipe)
    path = f"scoreboard/{DATA_FILE}"
    if lake.exists(path):
        from deepdistill_assets.evaluation.scoreboard import render_scoreboard

        console.print(render_scoreboard(lake.read_table(path)), markup=False)


def _ui(options: argparse.Namespace, environment: Environment) -> NoReturn:
    from deepdistill_assets.recipe import load_recipe
    from jobs.dagster_home import prepare

    recipe = load_recipe(environment.recipe)
    prepare(environment.dagster_directory(recipe.name))
    with socket.socket() as probe:
        if probe.connect_ex((LOOPBACK, options.port)) == 0:
            raise DeepDistillError(f"port {options.port} is in use.", f"choose another: --port {options.port + 1}.")
    if options.host not in (LOOPBACK, "localhost", "::1"):
        Console(stderr=True, highlight=False).print(f"[bold red]warning:[/] {NO_LOGIN.format(host=options.host)}")
    Console(highlight=False).print(f"http://{options.host}:{options.port}   recipe {recipe.name}   Ctrl-C stops it")
    # Dagster copies the SIGINT handler onto SIGTERM; from a background shell it would inherit "ignore" and never stop.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    os.chdir(CLONE)
    command = [sys.executable, "-m", "dagster", "dev", "-w", str(CLONE / "workspace.yaml")]
    command += ["-h", options.host, "-p", str(options.port)]
    os.execve(sys.executable, command, {**os.environ, **environment.variables(recipe.name)})  # noqa: S606


def _why(options: argparse.Namespace, environment: Environment) -> int:
    from deepdistill_assets.recipe import load_recipe
    from deepdistill_assets.reports.story import find_query, tell
    from jobs.screens import print_matches, print_story

    if (options.query_id is None) == (options.text is None):
        raise DeepDistillError("give a query id or --text, one of both.", 'deepdistill why --text "twelve"')
    recipe = load_recipe(environment.recipe)
    lake = lake_of(environment, recipe.name)
    found = find_query(lake, recipe, options.query_id, options.text)
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 150)
    if found["query_id"].n_unique() > 1:
        print_matches(console, found)
        return OK
    for query in found.iter_rows(named=True):
        print_story(console, query, tell(lake, recipe, query))
    return OK


def _quarantine(options: argparse.Namespace, environment: Environment) -> int:
    from deepdistill_assets.queries.quarantine import read_quarantine, to_correct
    from deepdistill_assets.recipe import load_recipe
    from jobs.screens import print_quarantine

    recipe = load_recipe(environment.recipe)
    if options.source is not None and options.source not in recipe.sources:
        raise DeepDistillError(
            f"no source {options.source!r} in {recipe.name}.", f"one of {', '.join(recipe.sources)}."
        )
    sources = [options.source] if options.source else list(recipe.sources)
    rows = read_quarantine(lake_of(environment, recipe.name), sources, options.reason)
    console = Console(highlight=False, soft_wrap=True)
    if options.to is None:
        print_quarantine(console, rows)
        return OK
    lines = [f"{line}\n" for line in to_correct(rows)]
    try:
        with Path(options.to).open("x", encoding="utf-8") as file:
            file.writelines(lines)
    except OSError as error:
        raise DeepDistillError(f"{options.to} cannot be written: {error.strerror}.", "name a new file.") from error
    console.print(
        f"{len(lines)} rows in {options.to}: mend `row` in each line (null leaves it out), then name the file"
    )
    console.print("as `corrections` of the source in the recipe, and run again.")
    return OK


def _pin(options: argparse.Namespace, environment: Environment) -> int:
    from jobs.pin import pin
    from jobs.screens import print_pins

    pins = pin(environment.recipe, options.to)
    print_pins(Console(highlight=False, soft_wrap=True), pins)
    return FAILED if pins.refused else OK


def _recipes(options: argparse.Namespace, environment: Environment) -> int:
    from jobs.screens import print_recipes

    print_recipes(Console(highlight=False, soft_wrap=True))
    return OK


def _doctor(options: argparse.Namespace, environment: Environment) -> int:
    from jobs.doctor import examine
    from jobs.screens import print_findings

    findings = examine(environment)
    print_findings(Console(highlight=False, soft_wrap=True), findings)
    return OK if all(finding.passed for finding in findings) else FAILED


if __name__ == "__main__":
    sys.exit(main())
