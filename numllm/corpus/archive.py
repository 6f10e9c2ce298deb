"""ZIP files of books (EPUB, DOCX), read within limits: a small file must not unpack to a full memory."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from ..errors import DataError

MAX_PART = 48 * 2**20
"""Bytes, unpacked, of the largest part that is read."""
MAX_TEXT = 256 * 2**20
"""Bytes, unpacked, of all parts that are read."""
MAX_RATIO = 150
"""A part over MAX_PART that packs better than this is a bomb: pictures do not, and text packs about 5 to 1."""


def brief(error: Exception) -> str:
    """What a library's error says, on one line of modest length."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 160 else text[:159] + "…"


class Archive:
    """An open ZIP file. DataError when it is none, is encrypted, or would unpack beyond the limits."""

    def __init__(self, path: Path) -> None:
        try:
            self.zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise DataError(f"damaged: not a ZIP file inside ({brief(error)})") from error
        self.parts = {info.filename: info for info in self.zip.infolist()}
        self.unpacked = 0
        for info in self.parts.values():
            if info.file_size > MAX_PART and info.file_size > MAX_RATIO * max(info.compress_size, 1):
                self.zip.close()
                raise DataError(
                    f"a zip bomb: {info.filename!r} holds {info.compress_size} bytes that unpack to {info.file_size}"
                )

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.zip.close()

    def __contains__(self, name: str) -> bool:
        return name in self.parts

    def read(self, name: str) -> bytes:
        """The bytes of a part; DataError when it is missing, damaged, encrypted or too large."""
        info = self.parts.get(name)
        if info is None:
            raise DataError(f"damaged: the part {name!r} is missing")
        if info.flag_bits & 1:
            raise DataError(f"encrypted: the part {name!r} opens with a password only")
        self.unpacked += info.file_size
        if info.file_size > MAX_PART or self.unpacked > MAX_TEXT:
            raise DataError(
                f"the part {name!r} unpacks to {info.file_size} bytes; at most {MAX_PART} in a part and {MAX_TEXT}"
                " in all are read"
            )
        try:
            with self.zip.open(info) as file:
                return file.read(MAX_PART + 1)  # zipfile stops at the size announced, and checks the sum
        except MemoryError:
            raise
        except Exception as error:  # zipfile, zlib, lzma and bz2 each raise their own
            raise DataError(f"damaged: the part {name!r} cannot be unpacked ({brief(error)})") from error

    def xml(self, name: str, *, whole: bool = False) -> Any:
        """The root element of an XML part; entities are not expanded.

        Slips in the markup are passed over, with what they hide; with `whole` they are a DataError.
        """
        try:
            from lxml import etree
        except ImportError as error:
            raise DataError("EPUB and DOCX need lxml; install it with: pip install 'numllm[textbooks]'") from error
        parser = etree.XMLParser(resolve_entities=False, no_network=True, recover=not whole, remove_comments=True)
        try:
            root = etree.fromstring(self.read(name), parser)
        except (etree.LxmlError, ValueError) as error:
            raise DataError(f"damaged: the part {name!r} is not whole XML ({brief(error)})") from error
        if root is None:
            raise DataError(f"damaged: the part {name!r} is not XML")
        return root
