"""A log's bytes as UTF-8: unpacked (gzip) or recoded (UTF-16), as its first bytes tell."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib

_GZIP = b"\x1f\x8b"
_PACKED = (b"PK\x03\x04", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"BZh", b"7z\xbc\xaf")
"""How files of zip, xz, zstd, bzip2 and 7z begin."""

_HEAD = 64
"""Bytes by which text of two bytes a letter is known that does not say so."""

_WHY_PACKED = "it is packed, and not by gzip"
_WHY_CUT = "it is packed by gzip, and damaged or not complete"
TOLD = (_WHY_PACKED, _WHY_CUT)
"""What people read of these, for `tools/spoken.py`."""


class Unpacked:
    """A stream of text. A rest that is damaged is left out.

    Attributes:
        unread: why it, or its rest, could not be read; empty: nothing was left out so far.
    """

    def __init__(self, file: io.BufferedReader) -> None:
        head = file.peek(_HEAD)[:_HEAD]
        self._decoder: codecs.IncrementalDecoder | None = None
        self.unread = _WHY_PACKED if head.startswith(_PACKED) else ""
        self._read = gzip.GzipFile(fileobj=file).read1 if head.startswith(_GZIP) else file.read
        if coding := _coding(head):
            self._decoder = codecs.getincrementaldecoder(coding)(errors="replace")

    def read(self, size: int, /) -> bytes:
        """Return at most so many bytes of what is packed or recoded; none: the end."""
        if self.unread:
            return b""
        parts: list[bytes] = []
        try:
            while size > 0 and (part := self._read(size)):  # what is packed comes in small pieces
                parts.append(part)
                size -= len(part)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            self.unread = _WHY_CUT
        data = b"".join(parts)
        return self._decoder.decode(data).encode() if self._decoder else data


def _coding(head: bytes) -> str:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    even, odd = head[::2], head[1::2]
    if len(head) < _HEAD or all(even) == all(odd):
        return ""
    return "utf-16-le" if not any(odd) else "utf-16-be" if not any(even) else ""
