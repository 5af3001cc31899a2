"""The entropy coder: integers and their frequency tables to bytes and back, the same on every machine."""

from histocodec.entropy.rans import RansDecoder, RansEncoder, decode, encode
from histocodec.entropy.tables import TableSet, fit_tables, gaussian_tables, quantise_pmf

__all__ = [
    "RansDecoder",
    "RansEncoder",
    "TableSet",
    "decode",
    "encode",
    "fit_tables",
    "gaussian_tables",
    "quantise_pmf",
]
