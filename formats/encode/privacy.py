"""Which properties of a source are kept: those that a list of harmless words knows. All others may identify people and
are left out, unless the user keeps them.

A property is kept if each word of its name is known to describe a scan or an image (`aperio.AppMag`,
`mirax.LAYER_0_LEVEL_0_SECTION.OVERLAP_X`), in any vendor's spelling, and its value tells nothing else: no date, no
number of a case, nothing that stands in a property that is left out. What no list knows is left out: an unknown
scanner setting is a small loss, a patient's name is not.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import PurePath

from histocodec.formats.container.attributes import DERIVED_PROPERTIES
from histocodec.formats.encode.options import EncodeOptions

_OPTICS = """
    app mag magnification objective lens source na numerical aperture power mpp micrometer micrometers micron
    microns per pixel pixels pitch focus offset from illumination brightfield light lamp condenser filter filtered
    filters optical path depth plane planes z layer layers stack spacing slice thickness coarse fine refractive
    index immersion medium
"""
_IMAGE = """
    image images imagenumber level levels width height depth size sizes x y w h xy left top right bottom row rows
    column columns originalwidth originalheight total matrix count number tile tiles tiled stripe strip strips
    overlap overlaps original downsample resolution unit units xresolution yresolution orientation format mode bit
    bits sample samples allocated stored high representation photometric interpretation planar configuration
    compression lossy lossless ratio quality jpeg jp rgb bgr gray grey colour color colors display fill background
    white balance point black gamma icc profile bounds region section zoom concat factor digitizer physical center
    centre position origin frame frames dimension dimensions organization type pyramid scale subsampling bigtiff raw
    scan area areas method
"""
_DEVICE = """
    vendor scanner manufacturer make model name device version versions software camera exposure time scale
    gain skew line angle direction parmset session speed temperature shading correction sharpening stitching adapter
    sensor stage hier hierarchical nonhier val zero value general data file datafile layout division divisions side
    slide rack dicom pim piim dp ufs pixelsize modality transfer syntax sop class product hash quickhash associated
    label macro thumbnail overview
"""
HARMLESS_WORDS = frozenset(f"{_OPTICS} {_IMAGE} {_DEVICE}".split())
# Names made of harmless words that are private all the same: somebody chose them (SLIDE_NAME, Label), or they are of a
# file or a moment.
_PRIVATE_NAME = re.compile(
    r"(?<!model )(?<!objective )(?<!lens )(?<!camera )(?<!product )(?<!filter )(?<!layer )\bname\b(?! z)"
    r"|\blabel (?!width|height|icc)|\blabel$|\bslide (?:number|value|version time)|\b(?:data )?file\b|\bscan time\b"
    r"|\bimage time\b|\bstored time\b|^time$|\bscan position\b"
)
# What OpenSlide computes itself; the rest of its own properties, such as comment and barcode, is the vendor's.
_OPENSLIDE = re.compile(
    r"openslide\.(?:vendor|quickhash-1|mpp-[xy]|objective-power|background-color|level-count|icc-size"
    r"|bounds-(?:x|y|width|height)|region\[\d+\]\.(?:x|y|width|height)"
    r"|level\[\d+\]\.(?:width|height|downsample|tile-width|tile-height)"
    r"|associated\.[^.]*\.(?:width|height|icc-size))"
)

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_DATE = re.compile(
    r"(?<!\d)(?:(?:19|20)\d\d[-/.]\d\d?[-/.]\d\d?|\d\d?[-/.]\d\d?[-/.](?:19|20)\d\d|\d\d?[-/]\d\d?[-/]\d\d"
    r"|(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01]))(?!\d{3})"
)
# A run of letters and at least four digits, as in S24-12345, or of at least ten digits.
_CASE_NUMBER = re.compile(
    r"(?<![\w.-])(?=[\w-]*[A-Za-z])(?:[A-Za-z_-]*\d){4}[\w-]*(?![\w.-])|(?<![\w.])\d{10,}(?![\w.])"
)
_SIZE = re.compile(r"\d+(?:x\d+)+|\d+(?:e[+-]?\d+|[a-zµ]{1,3})|[0-9A-F]{6}", re.IGNORECASE)  # or a colour
# Kinds of files, as a container names its source's. Another suffix may be a part of a name: "scan of J.Doe".
_KINDS = """
    svs tif tiff btf tf2 tf8 ndpi vms vmu scn mrxs bif svslide czi dcm zarr png jpg jpeg jp2 j2k webp avif bmp gif
"""
KINDS = frozenset(_KINDS.split())
SHORTEST_SECRET = 5  # characters of a private value that no other property may repeat; shorter ones are common numbers


def is_private(name: str, value: str) -> bool:
    """Whether a property may hold a person's name, a date, or a number that leads to either."""
    if name.startswith("openslide."):
        return _OPENSLIDE.fullmatch(name) is None
    words = [word.lower() for word in _WORD.findall(name.partition(".")[2] or name)]
    harmless = all(word in HARMLESS_WORDS or word.removesuffix("s") in HARMLESS_WORDS for word in words)
    return not harmless or _PRIVATE_NAME.search(" ".join(words)) is not None or _tells_more(value)


def without_private(properties: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The properties that are not private, and the names of those that are. A property that repeats the value of a
    private one is private, too."""
    secrets = _secrets(properties)

    def is_dropped(name: str, value: str) -> bool:
        return is_private(name, value) or (
            not name.startswith("openslide.") and any(secret in value for secret in secrets)
        )

    private = tuple(name for name, value in properties.items() if is_dropped(name, value))
    return {name: value for name, value in properties.items() if name not in private}, private


def _secrets(properties: Mapping[str, str]) -> set[str]:
    """The values of private properties that nothing else may repeat."""
    values = {value.strip() for name, value in properties.items() if is_private(name, value)}
    return {value for value in values if len(value) >= SHORTEST_SECRET}


def kept_properties(properties: Mapping[str, str], options: EncodeOptions) -> dict[str, str]:
    """The properties that a container keeps: those that are not private, unless `options` keeps these, too, and that do
    not follow from the rest of the container."""
    kept = dict(properties) if options.keep_private else without_private(properties)[0]
    return {name: value for name, value in kept.items() if not name.startswith(DERIVED_PROPERTIES)}


def source_kind(file: PurePath) -> str:
    """The kind of a source by its suffix: "png"; "array" where that is none of a known kind."""
    kind = file.suffix[1:].lower()
    return kind if kind in KINDS else "array"


def stored_name(name: str, properties: Mapping[str, str], options: EncodeOptions) -> str:
    """What a container keeps of the name of the source's file: the name, the first half of its SHA-256, or nothing.
    By default nothing where the name holds a date, what looks like the number of a case, or the value of a private
    property of the source."""
    how = options.source_name
    if how == "auto":
        tells = _tells_more(PurePath(name).stem) or any(secret in name for secret in _secrets(properties))
        how = "drop" if tells and not options.keep_private else "keep"
    if how == "hash":
        return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return name if how == "keep" else ""


def _tells_more(value: str) -> bool:
    """Whether a value holds a date, or what looks like the number of a case, in base 64 too."""
    if _DATE.search(value) is not None:
        return True
    return any(_is_case_number(run) for text in (value, _from_base64(value)) for run in _CASE_NUMBER.findall(text))


def _is_case_number(run: str) -> bool:
    return _SIZE.fullmatch(run) is None


def _from_base64(value: str) -> str:
    """The text that a value is the base 64 of, as Philips and Leica write barcodes; empty where it is none."""
    try:
        return base64.b64decode(value.strip(), validate=True).decode("ascii")
    except ValueError:
        return ""
