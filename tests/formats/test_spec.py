"""The worked examples of the specification are true."""

from pathlib import Path

import numpy as np

from histocodec.entropy import RansEncoder, TableSet, decode
from histocodec.formats.container import attributes as limits
from histocodec.formats.container import read as module
from histocodec.formats.container.shard import pack_shard
from histocodec.models.config import MODEL_ID


def test_the_examples_of_the_specification_are_true() -> None:
    text = (Path(module.__file__).parents[1] / "SPEC.md").read_text(encoding="utf-8")
    tables = TableSet(
        low=np.array([-1, 0], np.int16),
        size=np.array([3, 1], np.uint16),
        freq=np.array([4096, 8192, 3072, 1024, 16000, 384], np.uint16),
    )
    numbers = np.array([0, 0, 0, 0, 1, 1], np.uint16)
    values = np.array([1, 1, -3, 1, 2, 0], np.int32)
    for lanes, data in ((1, "d1 b5 01 00 80 73 02 03 00"), (2, "80 fb 3f 0e 00 3a 1d 00 02 03 01")):
        encoder = RansEncoder(tables)
        encoder.write(values, numbers)
        assert encoder.finish(lanes=lanes).hex(" ") == data
        assert decode(bytes.fromhex(data), numbers, tables).tolist() == values.tolist()
    shard = pack_shard([b"ab", None, None, b"c"])
    parts = ("d1 b5 01 00", "80 73 ", "`80 fb 3f 0e 00 3a 1d 00 02 03 01`")
    for part in (*parts, shard[:6].hex(" "), shard[-4:].hex(" ")):
        assert part in text
    for pattern in (MODEL_ID, limits.IMAGE_NAME):
        assert f"`{pattern}`" in text
