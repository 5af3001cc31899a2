"""The attributes of DICOM's VL Whole Slide Microscopy Image, module by module, in the order of PS3.3 A.32.8.3.

What a container does not know is empty where DICOM allows that (type 2), and a placeholder where it does not (type 1):
specimen and container carry the container's UID, the equipment is "unknown" but for the vendor, the acquisition is at
DICOM's first date, and pixels without a profile count as sRGB.
"""

import io
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, BinaryIO

from histocodec.errors import UnsupportedError
from histocodec.formats.export.identity import container_uuid, seed_of, uuid_of
from histocodec.formats.export.losses import Loss
from histocodec.formats.export.order import Order
from histocodec.version import VERSION

if TYPE_CHECKING:
    from pydicom import Dataset

SOP_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
IMPLEMENTATION = "2.25.151903936310470473049541937268346217472"  # ours, made once
SYNTAXES = {  # by codec and whether it is lossless
    ("jpeg", False): "1.2.840.10008.1.2.4.50",
    ("jpeg2000", True): "1.2.840.10008.1.2.4.90",
    ("jpeg2000", False): "1.2.840.10008.1.2.4.91",
    ("htj2k", True): "1.2.840.10008.1.2.4.201",
    ("htj2k", False): "1.2.840.10008.1.2.4.203",
}
PHOTOMETRIC = {
    "jpeg": ("YBR_FULL_422", "YBR_FULL_422"),
    "jpeg2000": ("YBR_RCT", "YBR_ICT"),
    "htj2k": ("YBR_RCT", "YBR_ICT"),
}
UNKNOWN = "unknown"
FIRST_TIME = "19000101000000"  # of an acquisition whose time is not known
ORIENTATION = [0, -1, 0, -1, 0, 0]  # rows run along -y, columns along -x of the slide
DEPTH = 0.001  # mm, of what the microscope had in focus: not known
MICRONS_PER_MM = 1000.0
GLASS = 25.0  # mm, the shorter side of a glass slide (ISO 8037-1: 26 mm at most)


@dataclass(frozen=True)
class Instance:
    """One image of the series: its four values of Image Type, its number, its size and that of a frame in pixels, and
    the losses before it was coded."""

    kind: tuple[str, str, str, str]
    number: int
    size: tuple[int, int]
    frame: tuple[int, int]
    losses: tuple[Loss, ...]

    @property
    def flavour(self) -> str:
        """VOLUME, LABEL, OVERVIEW or THUMBNAIL."""
        return self.kind[2]


class Series:
    """What all images of a series share."""

    def __init__(self, order: Order) -> None:
        self.order, self.slide = order, order.slide
        self.attributes = order.slide.container.attributes

    def uid(self, role: str) -> str:
        """A UID of this series (PS3.5 B.2: 2.25 and a UUID as an integer)."""
        return f"2.25.{uuid_of(self.order, role).int}"

    def shared_uid(self, role: str) -> str:
        """A UID that all exports of the container share."""
        return f"2.25.{container_uuid(self.slide, role).int}"

    def extent(self, instance: "Instance") -> tuple[float, float]:
        """Width and height of what an image shows, in mm. Of label and overview nobody states it: their shorter side is
        taken for that of a glass slide."""
        if instance.flavour in ("LABEL", "OVERVIEW"):
            spacing = GLASS / min(instance.size)
            return instance.size[0] * spacing, instance.size[1] * spacing
        assert self.order.mpp is not None
        first = self.slide.levels[0]
        mpp_x, mpp_y = (size * first.downsample for size in self.order.mpp)
        return first.width * mpp_x / MICRONS_PER_MM, first.height * mpp_y / MICRONS_PER_MM

    @cached_property
    def profile(self) -> bytes:
        """The ICC profile, which DICOM demands of colour images."""
        return self.slide.icc_profile or _srgb()

    @cached_property
    def created(self) -> str:
        """When the container was made, as DICOM writes it: its pixels have existed since."""
        digits = "".join(c for c in self.attributes.provenance.created[:19] if c.isdigit())
        return digits if len(digits) == len(FIRST_TIME) else FIRST_TIME


def file_header(file: BinaryIO, dataset: "Dataset") -> None:
    """Writes preamble, file meta information and data set, without pixel data."""
    from pydicom import dcmwrite

    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    file.write(buffer.getbuffer())


def image_dataset(series: Series, instance: Instance, frames: int, losses: tuple[Loss, ...]) -> "Dataset":
    """All attributes of an image but its pixel data and the extended offset table."""
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID

    order = series.order
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = UID(SOP_CLASS)
    dataset.file_meta.MediaStorageSOPInstanceUID = UID(series.uid(f"{instance.flavour} {instance.number}"))
    dataset.file_meta.TransferSyntaxUID = UID(SYNTAXES[order.codec, order.quality is None])
    dataset.file_meta.ImplementationClassUID = UID(IMPLEMENTATION)
    dataset.file_meta.ImplementationVersionName = f"HISTOCODEC_{VERSION}"[:16]
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = SOP_CLASS
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    _study(dataset, series)
    _equipment(dataset, series)
    _pixels(dataset, series, instance, frames)
    _lossy(dataset, losses)
    _specimen(dataset, series)
    _slide_image(dataset, series, instance)
    _functional_groups(dataset, series, instance)
    return dataset


def _study(dataset: "Dataset", series: Series) -> None:
    """Patient, study, series and frame of reference: nobody is named."""
    dataset.PatientName = dataset.PatientID = dataset.PatientBirthDate = dataset.PatientSex = ""
    dataset.StudyInstanceUID = series.shared_uid("study")
    dataset.StudyDate = dataset.StudyTime = dataset.StudyID = ""
    dataset.ReferringPhysicianName = dataset.AccessionNumber = ""
    dataset.Modality = "SM"
    dataset.SeriesInstanceUID = series.uid("series")
    dataset.SeriesNumber = 1
    dataset.FrameOfReferenceUID = series.shared_uid("frame of reference")
    dataset.PositionReferenceIndicator = "SLIDE_CORNER"


def _equipment(dataset: "Dataset", series: Series) -> None:
    dataset.Manufacturer = (series.attributes.source.vendor or UNKNOWN)[:64]
    dataset.ManufacturerModelName = dataset.DeviceSerialNumber = UNKNOWN
    dataset.SoftwareVersions = f"histocodec {VERSION}"


def _pixels(dataset: "Dataset", series: Series, instance: Instance, frames: int) -> None:
    order = series.order
    dataset.InstanceNumber = instance.number
    dataset.ContentDate, dataset.ContentTime = series.created[:8], series.created[8:]
    dataset.AcquisitionDateTime = FIRST_TIME
    dataset.ImageType = list(instance.kind)
    dataset.Columns, dataset.Rows = instance.frame
    dataset.NumberOfFrames = frames
    dataset.SamplesPerPixel, dataset.PlanarConfiguration, dataset.PixelRepresentation = 3, 0, 0
    dataset.PhotometricInterpretation = PHOTOMETRIC[order.codec][order.quality is not None]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.TotalPixelMatrixColumns, dataset.TotalPixelMatrixRows = instance.size
    dataset.DerivationDescription = series.order.history(0)[:1024]
    dataset.DerivationCodeSequence = [_code("113040", "DCM", "Lossy Compression")]


def _lossy(dataset: "Dataset", losses: tuple[Loss, ...]) -> None:
    """What the pixels went through, in order. A method without a known ratio is described in words alone: DICOM has as
    many ratios as methods."""
    from pydicom.valuerep import format_number_as_ds

    dataset.LossyImageCompression = "01" if losses else "00"
    known = [(loss.method, loss.ratio) for loss in losses if loss.ratio is not None]
    if known:
        dataset.LossyImageCompressionMethod = [method for method, _ in known]
        dataset.LossyImageCompressionRatio = [format_number_as_ds(round(ratio, 3)) for _, ratio in known]


def _specimen(dataset: "Dataset", series: Series) -> None:
    name = seed_of(series.slide)[:32]
    dataset.ContainerIdentifier = name
    dataset.IssuerOfTheContainerIdentifierSequence = []
    dataset.ContainerTypeCodeSequence = [_code("433466003", "SCT", "Microscope slide")]
    dataset.AcquisitionContextSequence = []
    specimen = _item()
    specimen.SpecimenIdentifier = name
    specimen.SpecimenUID = series.shared_uid("specimen")
    specimen.IssuerOfTheSpecimenIdentifierSequence = []
    specimen.SpecimenPreparationSequence = []
    dataset.SpecimenDescriptionSequence = [specimen]


def _slide_image(dataset: "Dataset", series: Series, instance: Instance) -> None:
    width, height = series.extent(instance)
    shows_label = instance.flavour in ("LABEL", "OVERVIEW")
    dataset.ImagedVolumeWidth, dataset.ImagedVolumeHeight, dataset.ImagedVolumeDepth = width, height, DEPTH
    origin = _item()
    # Where on the glass the scan began is not known: it ends at the corner of the slide.
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = _ds(height), _ds(width)
    dataset.TotalPixelMatrixOriginSequence = [origin]
    dataset.ImageOrientationSlide = ORIENTATION
    dataset.VolumetricProperties = "VOLUME"
    dataset.SpecimenLabelInImage = "YES" if shows_label else "NO"
    dataset.BurnedInAnnotation = "YES" if shows_label else "NO"
    dataset.FocusMethod, dataset.ExtendedDepthOfField = "AUTO", "NO"
    dataset.TotalPixelMatrixFocalPlanes = 1
    if instance.flavour == "LABEL":
        dataset.BarcodeValue = dataset.LabelText = ""
    if instance.flavour in ("VOLUME", "THUMBNAIL"):
        dataset.PyramidUID = series.uid("pyramid")
    path = _item()
    path.OpticalPathIdentifier = "1"
    path.IlluminationTypeCodeSequence = [_code("111744", "DCM", "Brightfield illumination")]
    path.IlluminationColorCodeSequence = [_code("414298005", "SCT", "Full Spectrum")]
    path.ICCProfile = series.profile + b"\0" * (len(series.profile) % 2)
    if series.slide.icc_profile is None:
        path.ColorSpace = "SRGB"
    if series.slide.objective_power is not None:
        path.ObjectiveLensPower = _ds(series.slide.objective_power)
    dataset.NumberOfOpticalPaths, dataset.OpticalPathSequence = 1, [path]


def _functional_groups(dataset: "Dataset", series: Series, instance: Instance) -> None:
    dimensions = _item()
    dimensions.DimensionOrganizationUID = series.shared_uid("dimensions")
    dataset.DimensionOrganizationSequence, dataset.DimensionOrganizationType = [dimensions], "TILED_FULL"
    shared, frame_type, path, measures = _item(), _item(), _item(), _item()
    frame_type.FrameType = list(instance.kind)
    shared.WholeSlideMicroscopyImageFrameTypeSequence = [frame_type]
    path.OpticalPathIdentifier = "1"
    shared.OpticalPathIdentificationSequence = [path]
    width, height = series.extent(instance)
    measures.PixelSpacing = [_ds(height / instance.size[1]), _ds(width / instance.size[0])]
    measures.SliceThickness = _ds(DEPTH)
    shared.PixelMeasuresSequence = [measures]
    dataset.SharedFunctionalGroupsSequence = [shared]


def _item() -> "Dataset":
    from pydicom import Dataset

    return Dataset()


def _code(value: str, scheme: str, meaning: str) -> "Dataset":
    item = _item()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _ds(value: float) -> str:
    """A decimal string: at most 16 characters."""
    from pydicom.valuerep import format_number_as_ds

    return format_number_as_ds(float(value))


def _srgb() -> bytes:
    """An sRGB profile, without the time at which it was made."""
    from PIL import ImageCms

    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    if data[36:40] != b"acsp":
        raise UnsupportedError("Pillow makes an sRGB profile of an unknown form")
    data[24:36] = b"\x07\xd0\0\x01\0\x01" + bytes(6)  # 1 January 2000
    return bytes(data)
