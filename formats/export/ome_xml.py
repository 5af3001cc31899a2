"""The OME-XML of an OME-TIFF (schema 2016-06): images, pixel sizes, objective, and what the pixels went through."""

import re
import uuid
from xml.etree import ElementTree as Xml

from histocodec.formats.export.identity import uuid_of
from histocodec.formats.export.order import Order
from histocodec.version import VERSION

HEAD = '<?xml version="1.0" encoding="UTF-8"?>'
NAMESPACE = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
HISTORY, PROPERTIES = "histocodec/compression", "histocodec/source-properties"  # of the annotations


def ome_xml(order: Order) -> str:
    """The XML in ASCII, as TIFF's description is. Page 0 is the slide; a page for each associated image follows."""
    slide = order.slide
    root = Xml.Element("OME", xmlns=NAMESPACE, Creator=f"histocodec {VERSION}", UUID=_urn(uuid_of(order, "ome")))
    if slide.objective_power is not None:
        instrument = Xml.SubElement(root, "Instrument", ID="Instrument:0")
        Xml.SubElement(instrument, "Objective", ID="Objective:0", NominalMagnification=f"{slide.objective_power:g}")
    image = Xml.SubElement(root, "Image", ID="Image:0", Name=order.out.name)
    Xml.SubElement(image, "Description").text = order.history(0)
    if slide.objective_power is not None:
        Xml.SubElement(image, "InstrumentRef", ID="Instrument:0")
        Xml.SubElement(image, "ObjectiveSettings", ID="Objective:0")
    sizes: dict[str, str] = {}
    if order.mpp is not None:
        for axis, mpp in zip("XY", order.mpp, strict=True):
            sizes[f"PhysicalSize{axis}"] = f"{mpp:.17g}"  # in µm, which is the default; some readers trip over its sign
    _pixels(image, 0, (slide.levels[0].width, slide.levels[0].height), sizes)
    annotations = [(HISTORY, _facts(order))]
    if slide.container.attributes.properties:
        annotations.append((PROPERTIES, dict(slide.container.attributes.properties)))
    for number in range(len(annotations)):
        Xml.SubElement(image, "AnnotationRef", ID=f"Annotation:{number}")
    for number, (name, size) in enumerate(slide.container.attributes.associated.items(), 1):
        _pixels(Xml.SubElement(root, "Image", ID=f"Image:{number}", Name=name), number, size, {})
    structured = Xml.SubElement(root, "StructuredAnnotations")
    for number, (namespace, facts) in enumerate(annotations):
        annotation = Xml.SubElement(structured, "MapAnnotation", ID=f"Annotation:{number}", Namespace=namespace)
        value = Xml.SubElement(annotation, "Value")
        for key, text in facts.items():
            Xml.SubElement(value, "M", K=_allowed(key)).text = _allowed(text)
    body: bytes = Xml.tostring(root, encoding="us-ascii")
    return HEAD + body.decode()


def _pixels(image: Xml.Element, number: int, size: tuple[int, int], sizes: dict[str, str]) -> None:
    form = {"ID": f"Pixels:{number}", "DimensionOrder": "XYCZT", "Type": "uint8", "Interleaved": "true"}
    form |= {"SizeX": str(size[0]), "SizeY": str(size[1]), "SizeC": "3", "SizeZ": "1", "SizeT": "1"}
    pixels = Xml.SubElement(image, "Pixels", form | sizes)
    Xml.SubElement(pixels, "Channel", ID=f"Channel:{number}:0", SamplesPerPixel="3")
    Xml.SubElement(pixels, "TiffData", IFD=str(number), PlaneCount="1")


def _facts(order: Order) -> dict[str, str]:
    """Keys as DICOM names them, then the levels' PSNR as it was measured while encoding."""
    losses, attributes = order.losses(0), order.slide.container.attributes
    facts = {"LossyImageCompression": "01" if losses or order.quality is not None else "00", "Coding": order.coding}
    for number, loss in enumerate(losses):
        facts[f"LossyImageCompressionMethod[{number}]"] = loss.words
        if loss.ratio is not None:
            facts[f"LossyImageCompressionRatio[{number}]"] = f"{loss.ratio:.4g}"
    facts["ContainerUID"] = attributes.provenance.uid
    for number, level in enumerate(attributes.levels):
        if level.psnr is not None:
            facts[f"Level[{number}].PSNR"] = f"{level.psnr:.2f} dB"
    return facts


def _urn(value: uuid.UUID) -> str:
    return f"urn:uuid:{value}"


def _allowed(text: str) -> str:
    """The text with U+FFFD for each character that XML cannot hold."""
    return NOT_XML.sub("\ufffd", text)
