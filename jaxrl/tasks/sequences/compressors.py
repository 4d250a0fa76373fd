"""What programs are compared with: general compressors, in bits of 8 per byte."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence


def gzip_bits(data: bytes) -> float:
    """Of all the data together, without a date."""
    return 8.0 * len(gzip.compress(data, mtime=0))


def zlib_bits(data: bytes, dictionary: bytes = b"") -> float:
    """Of one piece, by deflate without headers, with a dictionary that the receiver has."""
    compressor = (
        zlib.compressobj(9, zlib.DEFLATED, -15, zdict=dictionary) if dictionary else zlib.compressobj(9, wbits=-15)
    )
    return 8.0 * len(compressor.compress(data) + compressor.flush())


def text_bits(program: str, dictionary: str = "") -> float:
    """Of a program's text."""
    return zlib_bits(program.encode(), dictionary.encode())


def joined_gzip_rate(
    programs: Sequence[str], solved: Sequence[Sequence[int]], unsolved: Sequence[Sequence[int]]
) -> float:
    """The benchmark's compression rate for programs in Python: their joined gzip, that of the other sequences, and "
    "a bit for each.

    `programs` are those that count as solved, `solved` their sequences. Raises ValueError if both are empty.
    """
    total = sum(map(len, solved)) + sum(map(len, unsolved))
    if not total:
        raise ValueError("no sequences to compress")
    code = gzip_bits("\n".join(programs).encode()) if programs else 0.0
    rest = gzip_bits(bytes(v for values in unsolved for v in values)) if unsolved else 0.0
    return (code + rest + len(solved) + len(unsolved)) / (8.0 * total)
