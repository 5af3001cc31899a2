"""ICC profiles as files carry them, sound or not."""

from io import BytesIO

from PIL import ImageCms

BROKEN_PROFILE = "its ICC profile is damaged and was left out"


def is_profile(data: bytes) -> bool:
    """Whether these bytes are an ICC profile that LittleCMS opens. A damaged profile must cost nobody the pixels."""
    try:
        ImageCms.getOpenProfile(BytesIO(data))
    except (ImageCms.PyCMSError, OSError, ValueError):
        return False
    return True
