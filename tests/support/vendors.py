"""Small files in the manner of the scanners' own formats, with made-up tissue. OpenSlide opens each of them.

They have the traits that OpenSlide's drivers look for, and no more.
"""

import io
import struct
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from histocodec.slide import Pixels
from histocodec.sources.synthetic import synthetic_slide

JPEG: dict[str, Any] = {
    "photometric": "rgb",
    "compression": "jpeg",
    "compressionargs": {"level": 92},
    "subsampling": (1, 1),
    "metadata": None,
}
NM = 250  # nanometres per pixel of Leica's level 0


@cache
def tissue(width: int, height: int, seed: int = 0) -> Pixels:
    """An invented section (height, width, 3) uint8. Not to be changed: it is made once."""
    pixels = synthetic_slide(width, height, seed=seed)
    pixels.flags.writeable = False
    return pixels


def reduced(pixels: Pixels, step: float) -> Pixels:
    """The picture, `step` times smaller; sizes are rounded down."""
    size = (int(pixels.shape[1] / step), int(pixels.shape[0] / step))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))


def write_svs(
    path: Path,
    pixels: Pixels,
    *,
    steps: Sequence[float] = (4,),
    missing: Collection[tuple[int, int]] = (),
    mpp: str = "0.25",
    power: str = "20",
    tile: int = 256,
) -> Path:
    """Aperio. `missing` are the (level, tile) that are written without bytes."""
    height, width = pixels.shape[:2]
    description = (
        f"Aperio Image Library v11.2.1 \r\n{width}x{height} [0,0 {width}x{height}] ({tile}x{tile}) JPEG/RGB Q=70"
        f"|AppMag = {power}|MPP = {mpp}"
    )
    with tifffile.TiffWriter(path) as writer:

        def write(picture: Pixels, level: int) -> None:
            writer.write(
                _tiles(picture, tile, {number for at, number in missing if at == level}),
                shape=picture.shape,
                dtype=np.uint8,
                tile=(tile, tile),
                description=description,
                software=False,
                **JPEG,
            )

        write(pixels, 0)
        writer.write(reduced(pixels, 8), description=description, software=False, **JPEG)  # the thumbnail
        for level, step in enumerate(steps, 1):
            write(reduced(pixels, step), level)
    return path


def _tiles(pixels: Pixels, side: int, missing: set[int]) -> Iterator[Pixels | None]:
    corners = [(y, x) for y in range(0, pixels.shape[0], side) for x in range(0, pixels.shape[1], side)]
    for number, (y, x) in enumerate(corners):
        part = pixels[y : y + side, x : x + side]
        padding = ((0, side - part.shape[0]), (0, side - part.shape[1]), (0, 0))
        yield None if number in missing else np.pad(part, padding, mode="edge")


def write_leica(
    path: Path,
    areas: Sequence[tuple[Pixels, int, int]],
    *,
    plane: tuple[int, int] = (2503, 2503),
    power: str = "20",
    depths: int = 1,
) -> Path:
    """Leica. Each area is its pixels and its x and y in a plane of (width, height), all at level 0; levels of 1/4 and
    1/16 follow. There are `depths` focal planes, which all show the same."""
    pages: list[Pixels] = []
    width, height = plane

    def image(levels: Sequence[Pixels], x: int, y: int, size: tuple[int, int], objective: str) -> str:
        dimensions = ""
        for number, picture in enumerate(levels):
            for z in range(depths):
                dimensions += (
                    f'<dimension sizeX="{picture.shape[1]}" sizeY="{picture.shape[0]}" z="{z}" r="{number}" '
                    f'ifd="{len(pages)}"/>'
                )
            pages.append(picture)
        return (
            f'<image name="image"><creationDate>2012-01-19T11:19:41.00Z</creationDate><device model="SCN400"/>'
            f'<pixels sizeX="{levels[0].shape[1]}" sizeY="{levels[0].shape[0]}">{dimensions}</pixels>'
            f'<view sizeX="{size[0] * NM}" sizeY="{size[1] * NM}" offsetX="{x * NM}" offsetY="{y * NM}" spacingZ="0"/>'
            f"<scanSettings><objectiveSettings><objective>{objective}</objective></objectiveSettings>"
            "<illuminationSettings><illuminationSource>brightfield</illuminationSource>"
            "<numericalAperture>0.4</numericalAperture></illuminationSettings></scanSettings></image>"
        )

    images = image([np.full((256, 256, 3), 200, np.uint8)], 0, 0, plane, "0.6")  # the macro image
    for pixels, x, y in areas:
        levels = [pixels, reduced(pixels, 4), reduced(pixels, 16)]
        images += image(levels, x, y, (pixels.shape[1], pixels.shape[0]), power)
    xml = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="urn:uuid:1">'
        f'<collection name="slide" uuid="urn:uuid:2" sizeX="{width * NM}" sizeY="{height * NM}">'
        f"<barcode>UzI0</barcode>{images}</collection></scn>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for number, picture in enumerate(pages):
            writer.write(
                picture,
                tile=(128, 128),
                description=None if number else xml,
                resolution=(1e7 / NM, 1e7 / NM),
                resolutionunit="CENTIMETER",
                software="Leica SCN",
                **JPEG,
            )
    return path


def write_philips(path: Path, pixels: Pixels, *, steps: Sequence[int] = (2, 4, 8)) -> Path:
    """Philips. Every level is padded to whole tiles, and only the spacing says by how much it is reduced."""
    tile, levels = 256, [pixels, *(reduced(pixels, step) for step in steps)]
    representations = "".join(
        '<DataObject ObjectType="PixelDataRepresentation"><Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028" '
        f'Element="0x0030" PMSVR="IDoubleArray">&quot;{0.00025 * step}&quot; &quot;{0.00025 * step}&quot;</Attribute>'
        '<Attribute Name="PIIM_DP_PIXEL_DATA_REPRESENTATION_NUMBER" Group="0x301D" Element="0x2019" '
        f'PMSVR="IUInt16">{number}</Attribute></DataObject>'
        for number, step in enumerate((1, *steps))
    )
    xml = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        '<Attribute Name="DICOM_MANUFACTURER">PHILIPS</Attribute><Attribute Name="PIM_DP_SCANNED_IMAGES"><Array>'
        '<DataObject ObjectType="DPScannedImage"><Attribute Name="PIM_DP_IMAGE_TYPE">WSI</Attribute>'
        '<Attribute Name="DICOM_PIXEL_SPACING">&quot;0.00025&quot; &quot;0.00025&quot;</Attribute>'
        '<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"><Array>'
        f"{representations}</Array></Attribute></DataObject></Array></Attribute></DataObject>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for number, picture in enumerate(levels):
            down, across = (-length % tile for length in picture.shape[:2])
            padded = np.pad(picture, ((0, down), (0, across), (0, 0)), constant_values=255)
            writer.write(
                padded,
                tile=(tile, tile),
                description=None if number else xml,
                software="Philips DP v1.0",
                subfiletype=1 if number else 0,
                **JPEG,
            )
    return path


def write_trestle(path: Path, pixels: Pixels, *, steps: Sequence[float] = (2, 4), power: str = "10") -> Path:
    """Trestle. Neighbouring tiles overlap, by 64 pixels at level 0."""
    tile, scales = 256, (1, *steps)
    overlaps = [int(64 / step) for step in scales]
    description = (
        f"Background Color=F0F0F0;White Balance=FFFFFF;Objective Power={power};JPEG Quality=70;OverlapsXY="
        + " ".join(f"{overlap} {overlap}" for overlap in overlaps)
    )
    with tifffile.TiffWriter(path) as writer:
        for number, (step, overlap) in enumerate(zip(scales, overlaps, strict=True)):
            picture, advance = reduced(pixels, step), tile - overlap
            rows, columns = (-(-(length - overlap) // advance) for length in picture.shape[:2])
            padded = np.full((rows * advance + overlap, columns * advance + overlap, 3), 240, np.uint8)
            padded[: picture.shape[0], : picture.shape[1]] = picture
            stored = np.empty((rows * tile, columns * tile, 3), np.uint8)
            for row, column in np.ndindex(rows, columns):
                y, x = row * advance, column * advance
                part = slice(row * tile, (row + 1) * tile), slice(column * tile, (column + 1) * tile)
                stored[part] = padded[y : y + tile, x : x + tile]
            writer.write(
                stored,
                tile=(tile, tile),
                description=None if number else description,
                software="MedScan 1.0",
                resolution=(2e4, 2e4),
                resolutionunit="CENTIMETER",
                subfiletype=1 if number else 0,
                **JPEG,
            )
    return path


def write_huron(path: Path, pixels: Pixels, *, steps: Sequence[float] = (4,), power: str = "20") -> Path:
    """Huron. Its thumbnail stands between level 0 and the others."""
    with tifffile.TiffWriter(path) as writer:
        writer.write(
            pixels,
            tile=(256, 256),
            description=f"Source Scan=1\nObjective={power}",
            software=False,
            resolution=(2.5e4, 2.5e4),
            resolutionunit="CENTIMETER",
            extratags=[(271, "s", 0, "Huron Digital Pathology", True)],
            **JPEG,
        )
        writer.write(reduced(pixels, 8), software=False, **JPEG)
        for step in steps:
            writer.write(reduced(pixels, step), tile=(256, 256), software=False, subfiletype=1, **JPEG)
        for kind in (1, 9):  # label and macro
            writer.write(np.full((50, 60, 3), 33, np.uint8), software=False, subfiletype=kind, **JPEG)
    return path


def write_mrxs(
    path: Path,
    pixels: Pixels,
    *,
    side: int = 256,
    levels: int = 3,
    absent: Collection[tuple[int, int]] = (),
    power: str = "20",
) -> Path:
    """MRXS: `path`, and a folder of its name without `.mrxs`. Level 0 has images of `side` pixels; those at `absent`
    (column, row) were not scanned."""
    folder, slide_id = path.with_suffix(""), "ABCDEF0123456789"
    folder.mkdir(parents=True)
    rows, columns = (-(-length // side) for length in pixels.shape[:2])
    picture = np.full((rows * side, columns * side, 3), 255, np.uint8)
    picture[: pixels.shape[0], : pixels.shape[1]] = pixels
    data, body, heads = bytearray(b"MRXSDATA"), bytearray(), []
    start = len("01.02") + len(slide_id) + 8

    def put(*values: int) -> int:
        body.extend(struct.pack(f"<{len(values)}i", *values))
        return start + len(body) - 4 * len(values)

    for level in range(levels):
        step, entries = 1 << level, []
        for row in range(0, rows, step):
            for column in range(0, columns, step):
                under = {(column + i, row + j) for i in range(step) for j in range(step)}
                if not under - set(absent):
                    continue
                y, x = row // step * side, column // step * side
                image = picture[y : y + side, x : x + side]
                padding = ((0, side - image.shape[0]), (0, side - image.shape[1]), (0, 0))
                jpeg = _jpeg(np.pad(image, padding, constant_values=255))
                entries.append((row * columns + column, len(data), len(jpeg), 0))
                data += jpeg
        page = put(len(entries), 0, *(value for entry in entries for value in entry))
        heads.append(put(0, page))
        picture = reduced(picture, 2)
    hierarchical, others = put(*heads), put(0)
    (folder / "Data0000.dat").write_bytes(data)
    index = b"01.02" + slide_id.encode() + struct.pack("<ii", hierarchical, others) + body
    (folder / "Index.dat").write_bytes(index)
    sections = "".join(
        f"[LAYER_0_LEVEL_{level}_SECTION]\nIMAGE_CONCAT_FACTOR = {1 if level else 0}\nOVERLAP_X = 0\nOVERLAP_Y = 0\n"
        f"MICROMETER_PER_PIXEL_X = {0.25 * 2**level}\nMICROMETER_PER_PIXEL_Y = {0.25 * 2**level}\n"
        f"IMAGE_FORMAT = JPEG\nIMAGE_FILL_COLOR_BGR = {0xFFFFFF}\nDIGITIZER_WIDTH = {side}\nDIGITIZER_HEIGHT = {side}\n"
        for level in range(levels)
    )
    names = "".join(
        f"HIER_0_VAL_{level} = ZoomLevel_{level}\nHIER_0_VAL_{level}_SECTION = LAYER_0_LEVEL_{level}_SECTION\n"
        for level in range(levels)
    )
    (folder / "Slidedat.ini").write_text(
        f"[GENERAL]\nSLIDE_VERSION = 01.02\nSLIDE_ID = {slide_id}\nIMAGENUMBER_X = {columns}\nIMAGENUMBER_Y = {rows}\n"
        f"OBJECTIVE_MAGNIFICATION = {power}\nCameraImageDivisionsPerSide = 1\n[HIERARCHICAL]\nHIER_COUNT = 1\n"
        "NONHIER_COUNT = 0\nINDEXFILE = Index.dat\nHIER_0_NAME = Slide zoom level\n"
        f"HIER_0_COUNT = {levels}\n{names}[DATAFILE]\nFILE_COUNT = 1\nFILE_0 = Data0000.dat\n{sections}"
    )
    path.write_bytes(_jpeg(np.full((32, 32, 3), 255, np.uint8)))
    return path


def write_ndpi(path: Path, pixels: Pixels, *, steps: Sequence[int] = (4,), offsets: Sequence[int] = (0,)) -> Path:
    """Hamamatsu NDPI: a TIFF of 32 bits, but for the offsets of its directories, and each value has 32 more bits behind
    its directory. Every level has a page for each of the focal planes at `offsets`, which all show the same."""
    pages = [(reduced(pixels, step), 20 / step, offset) for step in (1, *steps) for offset in offsets]
    pages.append((np.full((64, 128, 3), 77, np.uint8), -1, 0))  # the macro image
    data, link = bytearray(b"II*\0" + bytes(8)), 4  # `link` is where the offset of the next directory is to be
    for picture, lens, offset in pages:
        jpeg, start = _jpeg(picture, restart=True), len(data)
        data += jpeg + bytes(len(jpeg) % 2)
        numbers = len(data)
        data += struct.pack("<4I3H", 40_000, 1, 40_000, 1, 8, 8, 8) + bytes(2)  # resolutions, bits
        short, integer, rational, single, signed = 3, 4, 5, 11, 9
        entries = [
            (256, integer, 1, picture.shape[1]), (257, integer, 1, picture.shape[0]), (258, short, 3, numbers + 16),
            (259, short, 1, 7), (262, short, 1, 6), (273, integer, 1, start), (277, short, 1, 3),
            (278, integer, 1, picture.shape[0]), (279, integer, 1, len(jpeg)), (282, rational, 1, numbers),
            (283, rational, 1, numbers + 8), (296, short, 1, 3), (65420, integer, 1, 1),
            (65421, single, 1, struct.pack("<f", lens)), (65424, signed, 1, struct.pack("<i", offset)),
        ]  # fmt: skip
        data[link : link + 8] = struct.pack("<Q", len(data))
        data += struct.pack("<H", len(entries))
        for tag, kind, count, value in entries:
            data += struct.pack("<HHI", tag, kind, count)
            data += value if isinstance(value, bytes) else struct.pack("<I", value)
        link = len(data)
        data += bytes(8 + 4 * len(entries))
    path.write_bytes(data)
    return path


def write_vms(path: Path, pixels: Pixels, *, layers: int = 1) -> Path:
    """Hamamatsu VMS: `path`, which names the JPEG files beside it. There are `layers` focal planes."""
    images = ""
    for layer in range(layers):
        name = f"{path.stem}{f'_{layer}' if layer else ''}.jpg"
        (path.parent / name).write_bytes(_jpeg(pixels, restart=True))
        images += f"ImageFile{f'({layer},0,0)' if layer else ''}={name}\n"
    (path.parent / f"{path.stem}_map2.jpg").write_bytes(_jpeg(reduced(pixels, 4), restart=True))
    (path.parent / f"{path.stem}_macro.jpg").write_bytes(_jpeg(reduced(pixels, 8)))
    path.write_text(
        f"[Virtual Microscope Specimen]\nNoLayers={layers}\nNoJpegColumns=1\nNoJpegRows=1\n{images}"
        f"MapFile={path.stem}_map2.jpg\nMacroImage={path.stem}_macro.jpg\n"
        f"PhysicalWidth={pixels.shape[1] * NM}\nPhysicalHeight={pixels.shape[0] * NM}\nSourceLens=20\n"
    )
    return path


def write_dicom(
    path: Path,
    pixels: Pixels,
    *,
    series: str = "1.2.3.1",
    instance: int = 1,
    tile: int = 256,
    optical_paths: int = 1,
    focal_planes: int = 1,
    frames: int = 1,
) -> Path:
    """DICOM: one level of a slide, in uncompressed tiles. Levels of one `series` in one folder are one slide. The
    name of another series stands in a sequence before it. Each tile has `frames` frames."""
    sop_class, syntax, uid = "1.2.840.10008.5.1.4.1.1.77.1.6", "1.2.840.10008.1.2.1", f"{series}.{instance}"
    tiles = frames * [part for part in _tiles(pixels, tile, set()) if part is not None]
    spacing = _item(_dicom(0x0028, 0x0030, "DS", "0.00025\\0.00025"))
    meta = b"".join(
        _dicom(0x0002, number, vr, value)
        for number, vr, value in (
            (0x0001, "OB", b"\0\1"), (0x0002, "UI", sop_class), (0x0003, "UI", uid), (0x0010, "UI", syntax),
            (0x0012, "UI", "1.2.3"),
        )
    )  # fmt: skip
    data = b"".join(
        (
            _dicom(0x0008, 0x0008, "CS", "ORIGINAL\\PRIMARY\\VOLUME\\NONE"),
            _dicom(0x0008, 0x0016, "UI", sop_class),
            _dicom(0x0008, 0x0018, "UI", uid),
            struct.pack("<HH2sHI", 0x0008, 0x1115, b"SQ", 0, 0xFFFFFFFF),
            _item(_dicom(0x0020, 0x000E, "UI", "9.9.9")),
            struct.pack("<HHI", 0xFFFE, 0xE0DD, 0),
            _dicom(0x0020, 0x000D, "UI", "1.2.3"),
            _dicom(0x0020, 0x000E, "UI", series),
            _dicom(0x0020, 0x9311, "CS", "TILED_FULL"),
            *(
                _dicom(0x0028, number, vr, value)
                for number, vr, value in (
                    (0x0002, "US", 3), (0x0004, "CS", "RGB"), (0x0006, "US", 0), (0x0008, "IS", str(len(tiles))),
                    (0x0010, "US", tile), (0x0011, "US", tile), (0x0100, "US", 8), (0x0101, "US", 8),
                    (0x0102, "US", 7), (0x0103, "US", 0),
                )
            ),
            _dicom(0x0048, 0x0006, "UL", pixels.shape[1]),
            _dicom(0x0048, 0x0007, "UL", pixels.shape[0]),
            _dicom(0x0048, 0x0302, "UL", optical_paths),
            _dicom(0x0048, 0x0303, "UL", focal_planes),
            _dicom(0x5200, 0x9229, "SQ", _item(_dicom(0x0028, 0x9110, "SQ", spacing))),
            _dicom(0x7FE0, 0x0010, "OB", b"".join(part.tobytes() for part in tiles)),
        )
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(128) + b"DICM" + _dicom(0x0002, 0x0000, "UL", len(meta)) + meta + data)
    return path


def _dicom(group: int, number: int, vr: str, value: bytes | str | int) -> bytes:
    """A data element in explicit, little-endian form."""
    if isinstance(value, int):
        value = value.to_bytes(2 if vr == "US" else 4, "little")
    elif isinstance(value, str):
        value = value.encode()
        value += (b"\0" if vr == "UI" else b" ") * (len(value) % 2)
    value += bytes(len(value) % 2)
    if vr in ("OB", "SQ"):
        return struct.pack("<HH2sHI", group, number, vr.encode(), 0, len(value)) + value
    return struct.pack("<HH2sH", group, number, vr.encode(), len(value)) + value


def _item(content: bytes) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content


def _jpeg(pixels: Pixels, *, restart: bool = False) -> bytes:
    """With `restart`, in rows that can be decoded alone, as Hamamatsu's are."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=92, subsampling=0, restart_marker_rows=int(restart))
    return buffer.getvalue()
