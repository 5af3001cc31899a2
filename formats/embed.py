"""Embeddings of tissue: of a container, from its latents; of a query image, by compressing it first."""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import UnsupportedError
from histocodec.formats.container.read import open_container
from histocodec.formats.container.states import BACKGROUND, chunks_where
from histocodec.formats.decode.cache import Cache
from histocodec.formats.decode.chunks import ChunkReader
from histocodec.formats.decode.model import model_of
from histocodec.formats.decode.open import open_slide
from histocodec.formats.encode.encode import encode_slide
from histocodec.formats.encode.options import DEFAULT_QUALITY, EncodeOptions
from histocodec.geometry import ChunkKey
from histocodec.models.weights import find_model
from histocodec.search.embedding import MIN_TISSUE_SHARE, Embedder, Embeddings, Latents, VectorKind, embedder_of
from histocodec.threads import Workers

LatentPosition = tuple[int, int]  # x, y of a patch's upper left corner, in latents
Vector = NDArray[np.float32]


def embed(
    path: Path,
    *,
    level: int = 0,
    embedder: Embedder | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Embeddings:
    """Computes one vector for each patch of tissue in a container, with its model's embedder unless another is given.

    Decodes latents, but no pixels. `progress` is called with the chunks done and their total. Raises UnsupportedError
    where there is no tissue or the chunks cannot be cut into patches, UsageError where the level does not exist.
    Memory: the vectors, and 16 bytes for each chunk that the maps claim.
    """
    container = open_container(path)
    attributes = container.attributes
    embedder = embedder or embedder_of(attributes.model.family)
    if attributes.chunk % embedder.side:
        raise UnsupportedError(
            f"{path}: has chunks of {attributes.chunk} latents a side; a multiple of {embedder.side} is needed"
        )
    digest, grid, side = container.latents_digest(level), attributes.grid(level), attributes.chunk
    weights, stats, pool = model_of(container), container.stats(), Workers(workers)
    reader = ChunkReader(container, weights, pool, cache=Cache(0))
    min_side = min(embedder.min_side, grid.latent_rows, grid.latent_columns)

    def chunk_vectors(key: ChunkKey) -> list[tuple[LatentPosition, Vector]]:
        chunk = reader.latents(key)
        assert chunk is not None  # `keys` has no background
        rows, columns = grid.latent_rows - key.row * side, grid.latent_columns - key.column * side
        scaled = chunk.y[:, :rows, :columns] * weights.inverse_gain(chunk.quality)[:, None, None]
        return [
            ((key.column * side + left, key.row * side + top), embedder.vector(patch))
            for (left, top), patch in _patches(scaled, embedder.side, min_side)
            if embedder.tissue(patch, stats.background_latent, stats.channels.std) >= MIN_TISSUE_SHARE
        ]

    stored = container.tiles(level) != BACKGROUND
    keys, count = chunks_where(level, stored), int(stored.sum())
    pairs: list[tuple[LatentPosition, Vector]] = []
    try:
        for done, pairs_of_chunk in enumerate(pool.map(chunk_vectors, keys), 1):
            pairs += pairs_of_chunk
            if progress is not None:
                progress(done, count)
    finally:
        pool.close()
    if not pairs:
        raise UnsupportedError(f"{path}: has no tissue on level {level}, so there is nothing to embed")
    latent_positions, vectors = zip(*pairs, strict=True)
    values = np.stack(vectors).astype(np.float16).astype(np.float32)  # as they are stored
    stride, downsample = attributes.model.stride, attributes.levels[level].downsample
    positions = np.rint(np.array(latent_positions) * (stride * downsample)).astype(np.int32)
    kind = VectorKind(attributes.model.id, attributes.model.sha256, embedder.name, values.shape[1])
    pixels = embedder.side * stride
    mpp = attributes.mpp_at(level)
    return Embeddings(kind, level, pixels, pixels * downsample, mpp, digest, values, positions)


def embed_image(path: Path, kind: VectorKind, *, device: str = "auto") -> Embeddings:
    """Computes the vectors of an image or a slide as they would be in a container of `kind`'s model.

    Raises MissingModelError where the model is not installed, UnsupportedError where there is no tissue, and what
    opening and encoding raise.
    """
    find_model(kind.model, kind.sha256)
    with TemporaryDirectory(prefix="histocodec-query-") as folder:
        container = Path(folder) / "query.zarr"
        with open_slide(path, device=device) as slide:
            options = EncodeOptions(DEFAULT_QUALITY, model=kind.model, levels=(0,), background="code", device=device)
            encode_slide(slide, container, options)
        try:
            return embed(container)
        except UnsupportedError as exc:
            raise UnsupportedError(f"{path}: has no tissue, so there is nothing to search for") from exc


def _patches(scaled: Latents, side: int, min_side: int) -> Iterator[tuple[LatentPosition, Latents]]:
    """The patches of a chunk (C, h, w), of `side` latents a side, with their positions in the chunk. At the level's
    edge, patches may have down to `min_side`."""
    for top in range(0, scaled.shape[1], side):
        for left in range(0, scaled.shape[2], side):
            patch = scaled[:, top : top + side, left : left + side]
            if min(patch.shape[1:]) >= min_side:
                yield (left, top), patch
