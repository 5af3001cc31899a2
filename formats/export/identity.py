"""Identifiers of exports, made once and kept: they follow from the container and the order, so a second export of the
same pixels in the same coding has the same ones, and another coding has others."""

import hashlib
import uuid

from histocodec.formats.decode.slide import CompressedSlide
from histocodec.formats.export.order import Order

HISTOCODEC = uuid.uuid5(uuid.NAMESPACE_URL, "urn:histocodec:export")  # the name space of our identifiers


def uuid_of(order: Order, role: str) -> uuid.UUID:
    """Names one part of an export: `role` says which."""
    mpp = "" if order.mpp is None else f"{order.mpp[0]!r},{order.mpp[1]!r}"
    return uuid.uuid5(HISTOCODEC, "|".join((seed_of(order.slide), order.codec, repr(order.quality), mpp, role)))


def container_uuid(slide: CompressedSlide, role: str) -> uuid.UUID:
    """Names something that all exports of a container share, such as the specimen."""
    return uuid.uuid5(HISTOCODEC, f"{seed_of(slide)}|{role}")


def seed_of(slide: CompressedSlide) -> str:
    """What names the container's pixels: its UID; in version 1, which has none, the SHA-256 of what it says about
    itself."""
    container = slide.container
    uid = container.attributes.provenance.uid
    return uid or hashlib.sha256(container.store.read("zarr.json", MAX_ROOT)).hexdigest()


MAX_ROOT = 16 << 20  # bytes of a root's metadata
