"""Plot latents by organ and by source, and measure how much of what separates organs is the source.

    python -m histocodec.benchmarks.paper.organs DATA --model vae-512 --out benchmarks/paper/results

A source is a data set: one scanner or hospital, one kind of image. Most organs here come from one source, so whatever
tells sources apart seems to tell organs apart, too. Two figures say how much: the precision of the nearest neighbour
with the query's case left out, among all images, among those of one source that has seven organs, and among those of
one organ that has three sources; and the share of the vectors' variance that lies between groups.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
from numpy.typing import NDArray

from histocodec.benchmarks.measure.provenance import Machine, Model
from histocodec.benchmarks.studies.patch_retrieval import (
    Label,
    Names,
    Patches,
    as_they_are,
    listed_images,
    precision,
)
from histocodec.benchmarks.studies.run_command import run_command
from histocodec.errors import UnsupportedError
from histocodec.extras import requires_extra
from histocodec.formats.container.files import write_atomically
from histocodec.formats.decode.open import open_slide
from histocodec.formats.embed import embed
from histocodec.formats.encode.encode import encode_slide
from histocodec.formats.encode.options import DEFAULT_QUALITY, EncodeOptions
from histocodec.models.weights import find_model
from histocodec.report import Progress, progress_bar
from histocodec.search.plot import COLOURS, MARKERS, umap_coordinates
from histocodec.search.whitening import Vectors, Whitening
from histocodec.text import json_text

MANY_ORGANS, MANY_SOURCES = "monuseg", "breast"  # the source with most organs, the organ with most sources


@dataclass(frozen=True)
class LabelPrecision:
    """How often the nearest patch of another case has the query's label, in per cent, and how often a patch drawn at
    random would; over the queries whose label occurs in another case."""

    label: str
    among: str
    queries: int
    precision: float
    chance: float


def gather(data: Path, model: str, most: int, progress: Progress) -> tuple[Patches, Vectors]:
    """Encode and embed every image of DATA/images.csv; return at most `most` patches of each, at random, and their
    vectors (n, d) as an index compares them."""
    images = listed_images(data)
    vectors: list[Vectors] = []
    labels: list[tuple[str, str, str]] = []
    for done, image in enumerate(images):
        progress(done, len(images) + 1, image["path"])
        with TemporaryDirectory(prefix="histocodec-organs-") as folder, open_slide(data / image["path"]) as slide:
            path = Path(folder) / "image.zarr"
            encode_slide(slide, path, EncodeOptions(DEFAULT_QUALITY, model=model, levels=(0,)))
            try:
                of_image = embed(path).vectors
            except UnsupportedError:  # an image of background
                continue
        chosen = np.random.default_rng(done).permutation(len(of_image))[:most]
        vectors.append(of_image[chosen])
        labels += [(image["organ"], f"{image['source']} {image['case']}", image["source"])] * len(chosen)
    raw = np.concatenate(vectors)
    organ, case, source = (np.array(column) for column in zip(*labels, strict=True))
    return Patches(organ, case, source), Whitening.fit(raw).apply(raw)


def label_precision(patches: Patches, vectors: Vectors, label: Label, among: str) -> LabelPrecision:
    """Search for each patch's nearest neighbour by cosine among all other cases. `among` names the patches."""
    nearest = precision(patches, vectors, as_they_are, patches.case, label)
    chance = precision(patches, None, as_they_are, patches.case, label)
    return LabelPrecision(label, among, nearest.queries, 100 * nearest.at_1, 100 * chance.at_1)


def share_between(vectors: Vectors, groups: Names) -> float:
    """The share of the variance of vectors (n, d) that lies between groups (n,), 0 to 1."""
    total = float(np.square(vectors - vectors.mean(axis=0)).sum())
    within = 0.0
    for name in np.unique(groups):
        members = vectors[groups == name]
        within += float(np.square(members - members.mean(axis=0)).sum())
    return 1 - within / total


def figure(points: NDArray[np.float32], patches: Patches, title: str) -> bytes:
    """Draw a PNG: the same points (n, 2), coloured by organ and by source."""
    with requires_extra("umap"):
        from matplotlib.figure import Figure
    drawn = Figure(figsize=(11, 4.6), dpi=160, layout="constrained")
    for place, (name, labels) in enumerate((("organ", patches.organ), ("source", patches.source)), 1):
        axes = drawn.add_subplot(1, 2, place)
        for number, label in enumerate(np.unique(labels)):
            members = points[labels == label]
            marker = MARKERS[number // len(COLOURS) % len(MARKERS)]
            colour = COLOURS[number % len(COLOURS)]
            axes.scatter(
                members[:, 0], members[:, 1], s=3, linewidths=0, alpha=0.7, c=colour, marker=marker, label=str(label)
            )
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
@click.option("--model", default="vae-512", show_default=True, help="Whose latents.")
@click.option("--most", type=click.IntRange(min=1), default=60, show_default=True, help="Patches taken of an image.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the JSON and the figure.")
def main(data: Path, *, model: str, most: int, out: Path) -> None:
    """Plot and measure the latents of the images that DATA/images.csv lists."""
    weights = find_model(model)
    with progress_bar("organs") as bar:
        patches, vectors = gather(data, model, most, bar)
        in_source, of_organ = patches.source == MANY_ORGANS, patches.organ == MANY_SOURCES
        one_source, one_organ = patches.where(in_source), patches.where(of_organ)
        precisions = [
            label_precision(patches, vectors, "organ", "all"),
            label_precision(patches, vectors, "source", "all"),
            label_precision(one_source, vectors[in_source], "organ", MANY_ORGANS),
            label_precision(one_organ, vectors[of_organ], "source", MANY_SOURCES),
        ]
        both = np.char.add(np.char.add(patches.organ, " "), patches.source)
        shares = {
            "source": share_between(vectors, patches.source),
            "organ": share_between(vectors, patches.organ),
            "organ and source": share_between(vectors, both),
            f"organ, within {MANY_ORGANS}": share_between(vectors[in_source], one_source.organ),
            f"source, within {MANY_SOURCES}": share_between(vectors[of_organ], one_organ.source),
        }
        points = umap_coordinates(vectors)
    name = f"organs-{weights.id}"
    result = {
        "machine": Machine.here(),
        "model": Model.of(weights),
        "patches": len(patches.organ),
        "cases": len(np.unique(patches.case)),
        "precision": precisions,
        "share of variance between": shares,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / f"{name}.json", f"{json_text(result, indent=1)}\n".encode())
    write_atomically(out / f"{name}.png", figure(points, patches, f"UMAP of {len(points)} patches, {weights.id}"))
    click.echo(json_text(result, indent=1))


if __name__ == "__main__":
    run_command(main)
