"""Which properties of a source may identify people. They are left out of a container unless the user keeps them.

A property is private if a word of its name says so, in any vendor's spelling (`aperio.ImageID`,
`mirax.GENERAL.SLIDE_CREATIONDATETIME`, `dicom.PatientName`, `hamamatsu.Created`), or if its value holds a date. Names
are judged by their words, not by a list of each vendor's fields, because such lists are never complete: the words drop
a scanner's serial number by mistake, a list would keep a patient's name.
"""

import re
from collections.abc import Mapping

# Who a slide comes from and who handled it; when; and which numbers lead to them.
PEOPLE = ("patient", "user", "operator", "creator", "author", "artist", "owner", "physician", "doctor", "institution")
PEOPLE_FACTS = ("name", "birth", "sex", "gender", "age", "address", "phone", "email", "copyright", "hospital")
MOMENTS = ("date", "time", "created", "updated", "modified", "timestamp")
NUMBERS = ("id", "uid", "identifier", "barcode", "accession", "serial", "case", "specimen", "label", "filename")
FREE_TEXT = ("title", "comment", "description", "reference", "note", "annotation", "document", "project")
PRIVATE_WORDS = frozenset((*PEOPLE, *PEOPLE_FACTS, *MOMENTS, *NUMBERS, *FREE_TEXT))
# Words that are written together with others, in capitals or not: SLIDE_CREATIONDATETIME, BarCode1D, UserName.
PRIVATE_PARTS = ("patient", "datetime", "barcode", "operator", "username", "creationdate", "accession", "physician")
HARMLESS = ("exposure time", "model name", "manufacturer model name", "transfer syntax uid", "sop class uid")
OPENSLIDE = "openslide."  # OpenSlide computes these properties itself, except for the comment
COMMENT = "openslide.comment"  # the vendor's free text

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_DATE = re.compile(
    r"(?<!\d)(?:(?:19|20)\d\d[-/.]\d\d?[-/.]\d\d?|\d\d?[-/.]\d\d?[-/.](?:19|20)\d\d|\d\d?[-/]\d\d?[-/]\d\d"
    r"|(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01]))(?!\d{3})"
)


def is_private(name: str, value: str) -> bool:
    """Whether a property may hold a person's name, a date, or a number that leads to either."""
    if name == COMMENT:
        return True
    if name.startswith(OPENSLIDE):
        return False
    words = [word.lower() for word in _WORD.findall(name.partition(".")[2] or name)]
    together = "".join(words)
    if any(" ".join(words).endswith(ending) for ending in HARMLESS):
        return False
    named = any(word.removesuffix("s") in PRIVATE_WORDS or word in PRIVATE_WORDS for word in words)
    return named or any(part in together for part in PRIVATE_PARTS) or _DATE.search(value) is not None


def without_private(properties: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The properties that are not private, and the names of those that are."""
    private = tuple(name for name, value in properties.items() if is_private(name, value))
    return {name: value for name, value in properties.items() if name not in private}, private
