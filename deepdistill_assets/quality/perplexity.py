"""Perplexity of query and response under a scoring model (DeepDistill section 2.5: dropped above 20)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256

import polars as pl

from deepdistill_resources.chunk_store import ChunkStore
from deepdistill_resources.compute import Worker
from deepdistill_resources.engines.base import GenerationSession
from deepdistill_resources.engines.prompting import PromptStyle
from deepdistill_resources.engines.resource import EngineResource
from deepdistill_resources.lake import Lake
from deepdistill_resources.models import ModelOrigin, ModelStore, ResolvedModel

MEASURED = {"text_sha256": pl.String(), "perplexity": pl.Float64()}
CHUNK_TEXTS = 128


class PerplexityWorker(Worker[list[str], int]):
    """A scoring model that keeps what it measured in the lake, chunk by chunk."""

    def __init__(self, session: GenerationSession, store: ChunkStore) -> None:
        self.session, self.store = session, store

    def __call__(self, batch: list[str]) -> int:
        """Measure texts; returns how many."""
        keys = [text_key(text) for text in batch]
        rows = {"text_sha256": keys, "perplexity": self.session.perplexities(batch)}
        self.store.commit(pl.DataFrame(rows, schema=MEASURED))
        return len(batch)

    def close(self) -> None:
        """Give the model back."""
        self.session.close()


@dataclass(frozen=True)
class OpenScorer:
    """Opens the scoring model and the store of one partition, wherever it is called."""

    engine: EngineResource
    model_store: ModelStore
    lake: Lake
    directory: str
    name: str
    origin: ModelOrigin

    def __call__(self) -> PerplexityWorker:
        """Return a worker with the model loaded."""
        return PerplexityWorker(self.engine.open(self.model(), PromptStyle()), self.store())

    def model(self) -> ResolvedModel:
        """Return where the model is."""
        return self.model_store.resolve(self.name, self.origin)

    def store(self) -> ChunkStore:
        """Return the store; its key is the hash of the text, its settings name the model."""
        settings = {"model_revision": self.model().revision}
        return ChunkStore(self.lake, self.directory, "text_sha256", MEASURED, settings)


def text_key(text: str) -> str:
    """Return the key of a text in the store."""
    return sha256(text.encode()).hexdigest()


def unmeasured(store: ChunkStore, batches: Iterable[list[str]]) -> Iterator[list[str]]:
    """Yield chunks of the texts that `store` does not know yet, each text once."""
    asked: set[str] = set()
    for texts in batches:
        by_key = {text_key(text): text for text in texts}
        wanted = [key for key in store.missing(by_key) if key not in asked]
        asked.update(wanted)
        for start in range(0, len(wanted), CHUNK_TEXTS):
            yield [by_key[key] for key in wanted[start : start + CHUNK_TEXTS]]


def measured(store: ChunkStore, keys: list[str]) -> dict[str, float | None]:
    """Return the perplexity of texts by key, None where the model gave none; all of them are in the store."""
    store.refresh()
    return dict(store.read(keys).iter_rows())
