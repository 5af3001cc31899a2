"""The entropy coder: integers and their frequency tables to bytes, and back, the same on every machine."""

from histocodec.entropy.rans import Decoder, Encoder, decode, encode
from histocodec.entropy.tables import TableSet, fit_tables, gaussian_tables, quantise_pmf

__all__ = [
    "Decoder",
    "Encoder",
    "TableSet",
    "decode",
    "encode",
    "fit_tables",
    "gaussian_tables",
    "quantise_pmf",
]
