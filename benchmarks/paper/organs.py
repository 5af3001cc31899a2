"""UMAP of the latents by organ and by source, and how much of what separates organs is the source.

    python -m histocodec.benchmarks.paper.organs DATA --model vae-512 --out benchmarks/paper/results

A source is a data set: one scanner or hospital, one kind of image. Most organs here come from one source, so whatever
tells sources apart seems to tell organs apart, too. Two figures say how much: precision of the nearest neighbour with
the query's case left out, among everything, among the images of one source that has seven organs, and among those of
one organ that has three sources; and the share of the vectors' variance that lies between groups.
"""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
from numpy.typing import NDArray

from histocodec.benchmarks.measure.provenance import Machine, Model
from histocodec.errors import HistocodecError, UnsupportedError
from histocodec.extras import requires_extra
from histocodec.formats.container.files import write_atomically
from histocodec.formats.decode.open import open_slide
from histocodec.formats.embed import embed
from histocodec.formats.encode.encode import encode_slide
from histocodec.formats.encode.options import DEFAULT_QUALITY, EncodeOptions
from histocodec.models.weights import find_model
from histocodec.report import progress_bar
from histocodec.search.plot import COLOURS, MARKERS, umap_coordinates
from histocodec.search.whitening import Vectors, Whitening
from histocodec.text import json_text

MANY_ORGANS, MANY_SOURCES = "monuseg", "breast"  # the source with most organs, the organ with most sources
Names = NDArray[np.str_]


@dataclass(frozen=True)
class Patches:
    """Vectors (n, d) as an index compares them, and where each comes from, (n,)."""

    vectors: Vectors
    organ: Names
    source: Names
    case: Names

    def where(self, chosen: NDArray[np.bool_]) -> "Patches":
        return Patches(self.vectors[chosen], self.organ[chosen], self.source[chosen], self.case[chosen])


@dataclass(frozen=True)
class Precision:
    """How often the nearest patch of another case has the query's label, in per cent, and how often a patch that is
    drawn at random would; over queries whose label occurs in another case."""

    label: str
    among: str
    queries: int
    precision: float
    chance: float


def gather(data: Path, model: str, most: int, tell: Callable[[int, int, str], None]) -> Patches:
    """At most `most` patches of each image that DATA/images.csv lists, at random."""
    with (data / "images.csv").open(newline="") as file:
        images = list({row["path"]: row for row in csv.DictReader(file)}.values())  # some are listed twice
    vectors: list[Vectors] = []
    rows: list[tuple[str, str, str]] = []
    for done, image in enumerate(images):
        tell(done, len(images) + 1, image["path"])
        with TemporaryDirectory(prefix="histocodec-organs-") as folder, open_slide(data / image["path"]) as slide:
            path = Path(folder) / "image.zarr"
            encode_slide(slide, path, EncodeOptions(DEFAULT_QUALITY, model=model, levels=(0,)))
            try:
                found = embed(path).vectors
            except UnsupportedError:  # an image of glass
                continue
        chosen = np.random.default_rng(done).permutation(len(found))[:most]
        vectors.append(found[chosen])
        rows += [(image["organ"], image["source"], f"{image['source']} {image['case']}")] * len(chosen)
    raw = np.concatenate(vectors)
    organ, source, case = (np.array(column) for column in zip(*rows, strict=True))
    return Patches(Whitening.fit(raw).apply(raw), organ, source, case)


def precision(patches: Patches, label: str, among: str) -> Precision:
    """Of the nearest by cosine, `label` being "organ" or "source"."""
    labels: Names = getattr(patches, label)
    hits, chances = [], []
    for start in range(0, len(labels), 512):
        part = slice(start, start + 512)
        near = patches.vectors[part] @ patches.vectors.T
        other = patches.case[part][:, None] != patches.case[None]
        same = (labels[part][:, None] == labels[None]) & other
        near[~other] = -np.inf
        answerable = same.any(axis=1)
        nearest = near.argmax(axis=1)
        hits += (labels[nearest] == labels[part])[answerable].tolist()
        chances += (same.sum(axis=1) / np.maximum(other.sum(axis=1), 1))[answerable].tolist()
    if not hits:
        return Precision(label, among, 0, float("nan"), float("nan"))
    return Precision(label, among, len(hits), 100 * float(np.mean(hits)), 100 * float(np.mean(chances)))


def share_between(vectors: Vectors, groups: Names) -> float:
    """The share of the vectors' variance that lies between groups, 0 to 1."""
    total = float(np.square(vectors - vectors.mean(axis=0)).sum())
    within = 0.0
    for name in np.unique(groups):
        own = vectors[groups == name]
        within += float(np.square(own - own.mean(axis=0)).sum())
    return 1 - within / total


def figure(points: NDArray[np.float32], patches: Patches, title: str) -> bytes:
    """A PNG: the same points, coloured by organ and by source."""
    with requires_extra("umap"):
        from matplotlib.figure import Figure
    drawn = Figure(figsize=(11, 4.6), dpi=160, layout="constrained")
    for place, (name, labels) in enumerate((("organ", patches.organ), ("source", patches.source)), 1):
        axes = drawn.add_subplot(1, 2, place)
        for number, label in enumerate(np.unique(labels)):
            own = points[labels == label]
            marker = MARKERS[number // len(COLOURS) % len(MARKERS)]
            colour = COLOURS[number % len(COLOURS)]
            axes.scatter(own[:, 0], own[:, 1], s=3, linewidths=0, alpha=0.7, c=colour, marker=marker, label=str(label))
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(f"by {name}", fontsize=10)
        axes.legend(fontsize=7, markerscale=3, frameon=False)
    drawn.suptitle(title, fontsize=10)
    file = io.BytesIO()
    drawn.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--model", default="vae-512", show_default=True)
@click.option("--most", type=click.IntRange(min=1), default=60, show_default=True, help="Patches of an image.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the JSON and the figure.")
def main(data: Path, *, model: str, most: int, out: Path) -> None:
    """UMAP and precision on the images that DATA/images.csv lists."""
    weights = find_model(model)
    with progress_bar("organs") as bar:
        patches = gather(data, model, most, bar)
        one_source = patches.where(patches.source == MANY_ORGANS)
        one_organ = patches.where(patches.organ == MANY_SOURCES)
        found = [
            precision(patches, "organ", "all"),
            precision(patches, "source", "all"),
            precision(one_source, "organ", MANY_ORGANS),
            precision(one_organ, "source", MANY_SOURCES),
        ]
        both = np.char.add(np.char.add(patches.organ, " "), patches.source)
        shares = {
            "source": share_between(patches.vectors, patches.source),
            "organ": share_between(patches.vectors, patches.organ),
            "organ and source": share_between(patches.vectors, both),
            f"organ, within {MANY_ORGANS}": share_between(one_source.vectors, one_source.organ),
            f"source, within {MANY_SOURCES}": share_between(one_organ.vectors, one_organ.source),
        }
        points = umap_coordinates(patches.vectors)
    name = f"organs-{weights.id}"
    result = {
        "machine": Machine.here(), "model": Model.of(weights), "patches": len(patches.organ),
        "cases": len(np.unique(patches.case)), "precision": found, "share of variance between": shares,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / f"{name}.json", f"{json_text(result, indent=1)}\n".encode())
    write_atomically(out / f"{name}.png", figure(points, patches, f"UMAP of {len(points)} patches, {weights.id}"))
    click.echo(json_text(result, indent=1))


if __name__ == "__main__":
    try:
        main()
    except HistocodecError as exc:
        raise SystemExit(f"error: {exc}") from exc
