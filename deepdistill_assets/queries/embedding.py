"""Unit vectors for the meaning of texts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from deepdistill_resources.compute import Compute, Worker
from deepdistill_resources.embedders import Embedder
from deepdistill_resources.errors import ModelError
from deepdistill_resources.models import ModelOrigin, ModelStore

BLOCK = 4096  # texts embedded at once; so many vectors are held


class EmbeddingWorker(Worker[list[str], np.ndarray]):
    """An embedding model on this node."""

    def __init__(self, embedder: Embedder, path: Path) -> None:
        self.embedder, self.path = embedder, path

    def __call__(self, batch: list[str]) -> np.ndarray:
        """Return unit vectors (texts, dimension)."""
        return self.embedder.embed(self.path, batch)


@dataclass(frozen=True)
class OpenEmbedder:
    """Opens the embedding model wherever it is called."""

    embedder: Embedder
    model_store: ModelStore
    origin: ModelOrigin

    def __call__(self) -> EmbeddingWorker:
        """Return a worker; raises ModelError when there are no weights."""
        path = self.model_store.resolve("embedding", self.origin).path
        if path is None:
            raise ModelError("a served model cannot embed queries.", "give `embedding.origin` weights on this machine.")
        return EmbeddingWorker(self.embedder, path)


def embedded(
    texts: pl.Series, dimension: int, opener: OpenEmbedder, compute: Compute, log: Callable[[str], None]
) -> Iterator[np.ndarray]:
    """Yield unit vectors of `BLOCK` texts each, float32; raises ModelError if their dimension is another."""
    starts = range(0, len(texts), BLOCK)
    blocks = (texts[start : start + BLOCK].fill_null("").to_list() for start in starts)
    for outcome in compute.map_batches(blocks, opener, name="embedding", rows=len(texts), log=log):
        vectors = outcome.value()
        if vectors.shape[1] != dimension:
            message = f"the embedding model gives {vectors.shape[1]} dimensions, not {dimension}."
            raise ModelError(message, "correct `embedding.dimension` in the recipe.")
        yield vectors
