"""Checks this machine for the chosen recipe and profile: what was found, and a fix beside each failure."""

import importlib.util
import platform
import secrets
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from deepdistill_assets.recipe import Recipe, load_recipe
from deepdistill_resources.errors import DeepDistillError, StorageError
from deepdistill_resources.lake import Lake
from deepdistill_resources.models import DirectoryOrigin, HubOrigin, ModelOrigin, PackageOrigin, ServedOrigin
from deepdistill_resources.profiles import Environment, lake_of, profile_named

PACKAGES = ("dagster", "polars", "torch", "transformers", "trl")
FREE_GIGABYTES = 3.0
INSTALL = "run `make install`."
SECONDS = 10  # how long a service may take to answer
POSTGRES_FIX = "start it, and set DAGSTER_POSTGRES_URL=postgresql+psycopg2://user:password@host:5432/database."


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `fix` stands beside a failure."""

    what: str
    found: str
    passed: bool = True
    fix: str | None = None


def examine(environment: Environment) -> list[Finding]:
    """Return all findings; raises DeepDistillError when the recipe or profile itself is wrong."""
    recipe = load_recipe(environment.recipe)
    profile = profile_named(environment.profile)
    checks: list[tuple[str, Callable[[], str]]] = [
        ("python", _python),
        ("packages", _packages),
        ("torch", lambda: _torch(environment.profile)),
        ("lake", lambda: _keeps_what_is_created_once(lake_of(environment, recipe.name))),
        ("steps", lambda: str(profile.executor(environment, []).name)),
        ("events", lambda: _events(environment, recipe)),
        ("step logs", lambda: _step_logs(environment, recipe)),
        ("disk", lambda: _disk(environment.home)),
        ("sandbox", _sandbox),
        ("compute", lambda: profile.resources(environment, recipe.name)["compute"].probe()),
        ("engine", lambda: _engine(environment, recipe)),
        ("trainer", lambda: profile.resources(environment, recipe.name)["trainer"].probe()),
    ]
    checks += [(f"model {name}", _model_check(origin)) for name, origin in recipe.models.items()]
    chosen = f"recipe {recipe.name}, profile {environment.profile} ({profile.description})"
    return [
        Finding("chosen", chosen),
        Finding("home", f"{environment.home}, models in {environment.model_directory()}"),
        *(_finding(what, check) for what, check in checks),
    ]


def _finding(what: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(what, check())
    except DeepDistillError as error:
        return Finding(what, error.message, passed=False, fix=error.fix or "see what the message names.")
    except Exception as error:  # noqa: BLE001  a check that breaks is a finding, and the others still run
        return Finding(what, f"{type(error).__name__}: {error}", passed=False, fix="a bug of this check: report it.")


def _python() -> str:
    if sys.version_info[:2] != (3, 11):
        raise DeepDistillError(f"Python {platform.python_version()}; 3.11 is needed.", "install Python 3.11.")
    return f"{platform.python_version()} on {platform.platform()}"


def _packages() -> str:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError as error:
            raise DeepDistillError(f"{name} is not installed.", INSTALL) from error
    return ", ".join(found)


def _torch(profile: str) -> str:
    from deepdistill_resources.trainers.torch_build import check_torch_build

    installed = check_torch_build(profile)
    import torch

    if profile != "gpu" and not torch.cuda.is_available():
        return f"{installed}, no GPU" + (
            " here: steps of the pool `gpu` need one" if profile in ("cluster", "ray") else ""
        )
    if not torch.cuda.is_available():
        raise DeepDistillError("this profile needs a GPU, torch sees none.", "use DEEPDISTILL_PROFILE=embedded.")
    return f"{installed}, {torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"


def _keeps_what_is_created_once(lake: Lake) -> str:
    """Write a create-once file, see that a second writer is refused, read it back, remove it."""
    path, content = f"_doctor/{secrets.token_hex(8)}", secrets.token_bytes(16)
    try:
        first, second = lake.create_bytes(path, content), lake.create_bytes(path, b"another writer")
        back = lake.read_bytes(path)
        lake.delete(path)
    except StorageError as error:
        fix = (
            "make the directory writable, or set DEEPDISTILL_HOME or DEEPDISTILL_LAKE."
            if lake.is_local
            else "check the bucket, AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
        raise DeepDistillError(error.message, fix) from error
    if not first or second or back != content:
        raise DeepDistillError(
            f"{lake.root} does not keep a file that is created once.",
            "use a directory or an S3 with If-None-Match.",
        )
    return f"{lake.root} is writable, create-once holds"


def _has_services(environment: Environment) -> bool:
    """Whether events and logs lie outside: always on a cluster; Ray on one machine may do without."""
    return environment.profile == "cluster" or (environment.profile == "ray" and environment.postgres_url is not None)


def _events(environment: Environment, recipe: Recipe) -> str:
    """Open Dagster's store of events: SQLite below DAGSTER_HOME, or Postgres on a cluster."""
    if not _has_services(environment):
        return f"SQLite in {environment.dagster_directory(recipe.name)}"
    if environment.postgres_url is None:
        raise DeepDistillError("DAGSTER_POSTGRES_URL is not set.", POSTGRES_FIX)
    from sqlalchemy import create_engine, text
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        url = make_url(environment.postgres_url)
        shown = url.render_as_string(hide_password=True)
        with create_engine(url, connect_args={"connect_timeout": SECONDS}).connect() as connection:
            version = connection.execute(text("show server_version")).scalar()
    except ModuleNotFoundError as error:  # plain postgresql:// means a driver that is not installed
        raise DeepDistillError(f"no Postgres driver: {error}.", f"{INSTALL} {POSTGRES_FIX}") from error
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise DeepDistillError(f"Postgres does not answer: {reason}", POSTGRES_FIX) from error
    return f"Postgres {version} at {shown}"


def _step_logs(environment: Environment, recipe: Recipe) -> str:
    if not _has_services(environment):
        return f"files in {environment.dagster_directory(recipe.name)}"
    if environment.log_bucket is None:
        raise DeepDistillError("DAGSTER_LOG_BUCKET is not set.", "set it to the bucket for step logs.")
    root = f"s3://{environment.log_bucket}/compute-logs"
    return _keeps_what_is_created_once(
        Lake(root=root, endpoint_url=environment.endpoint_url, region_name=environment.region_name)
    )


def _engine(environment: Environment, recipe: Recipe) -> str:
    """Let the first teacher whose model is at hand answer one token."""
    resources = profile_named(environment.profile).resources(environment, recipe.name)
    at_hand = [
        teacher
        for teacher in recipe.teachers.values()
        if isinstance(recipe.models[teacher.model], (PackageOrigin, DirectoryOrigin, ServedOrigin))
    ]
    if not at_hand:
        return f"{resources['engine'].default}, not tried: every teacher is fetched or made when first used"
    teacher = at_hand[0]
    engine = resources["engine"].model_copy(update={"max_attempts": 1, "timeout_seconds": float(SECONDS)})
    return engine.probe(resources["model_store"].resolve(teacher.model, recipe.models[teacher.model]), teacher.style)


def _disk(home: Path) -> str:
    existing = next(place for place in (home, *home.parents) if place.exists())
    free = shutil.disk_usage(existing).free / 1e9
    if free < FREE_GIGABYTES:
        raise DeepDistillError(f"{free:.1f} GB free at {existing}.", f"free at least {FREE_GIGABYTES:.0f} GB.")
    return f"{free:.0f} GB free at {existing}"


def _sandbox() -> str:
    from deepdistill_resources.sandbox import choose_tier

    _, test = choose_tier()
    return test.describe()


def _model_check(origin: ModelOrigin) -> Callable[[], str]:
    def check() -> str:
        if isinstance(origin, PackageOrigin):
            return f"package {origin.package} {_installed(origin.package)}"
        if isinstance(origin, DirectoryOrigin):
            if not Path(origin.path).is_dir():
                raise DeepDistillError(f"directory {origin.path} is missing.", "put the weights there.")
            return f"directory {origin.path}"
        if isinstance(origin, HubOrigin):
            if importlib.util.find_spec("huggingface_hub") is None:
                raise DeepDistillError("huggingface_hub is not installed.", INSTALL)
            return f"hub {origin.repository} at {origin.revision}, fetched when first used"
        return f"{origin.kind}, made or reached when first used"

    return check


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError as error:
        raise DeepDistillError(f"package {package} is not installed.", INSTALL) from error
