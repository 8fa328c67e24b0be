"""Sentence embeddings by a local model; the one place that loads sentence-transformers."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from deepdistill_resources.errors import MissingPackageError, ModelError
from deepdistill_resources.portable import PortableResource


@lru_cache(maxsize=2)
def _loaded(path: str, device: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingPackageError("sentence-transformers is not installed.", "install this project's lock.") from error
    if not Path(path).is_dir():
        raise ModelError(f"no embedding model at {path}.", "resolve it through the model store first.")
    try:
        return SentenceTransformer(path, device=device, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # its loaders raise whatever they like
        raise ModelError(f"the embedding model at {path} cannot be loaded: {error}") from error


class Embedder(PortableResource):
    """Turns texts into unit vectors; a model is loaded once per process.

    `device` is a torch device, `batch_size` counts texts. Texts longer than the model's window are cut there.
    """

    device: str = "cpu"
    batch_size: int = 32

    def embed(self, path: Path, texts: list[str]) -> np.ndarray:
        """Return L2-normalised vectors, float32 (texts, dimension).

        Args:
            path: directory of the model in sentence-transformers layout.
            texts: any number, also none.

        Raises:
            MissingPackageError: sentence-transformers is not installed.
            ModelError: no model there, it cannot be loaded, or it fails on the texts.
        """
        model = _loaded(str(path), self.device)
        if not texts:
            return np.empty((0, model.get_embedding_dimension()), np.float32)
        try:
            vectors = model.encode(
                texts,
                batch_size=self.batch_size,
                normalize_embeddings=True,
                convert_to_numpy=True,
                show_progress_bar=False,
            )
        except (RuntimeError, ValueError, TypeError) as error:
            raise ModelError(f"embedding {len(texts)} texts with {path} failed: {error}") from error
        return np.ascontiguousarray(vectors, np.float32)
