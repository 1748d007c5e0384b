"""CRC-64/XZ, the digest that COS and OSS compute of what they hold.

crcmod computes it, which both client libraries bring. Where crcmod was installed without a compiler
it has no C extension and computes in Python, about thirty times slower: the result is right, but
each archive costs that time, so the doctor says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from fuploader_dagster.contracts.diagnosis import Diagnosis


class Crc64:
    """A hash whose `hexdigest` is decimal, as COS and OSS write it."""

    def __init__(self) -> None:
        import crcmod  # noqa: PLC0415 - comes with the clients of COS and OSS only

        self._crc = crcmod.Crc(0x142F0E1EBA9EA3693, initCrc=0, xorOut=0xFFFFFFFFFFFFFFFF, rev=True)

    def update(self, data: memoryview, /) -> None:
        self._crc.update(bytes(data))  # crcmod takes no views

    def hexdigest(self) -> str:
        return str(self._crc.crcValue)


def examine() -> Iterator[Diagnosis]:
    """Whether crcmod has its C extension; nothing where crcmod is not installed."""
    try:
        module = import_module("crcmod.crcmod")  # the package hides it under its own name
    except ImportError:
        return
    if module._usingExtension:
        yield Diagnosis("CRC-64", "good", "crcmod has its C extension")
        return
    yield Diagnosis(
        "CRC-64",
        "warning",
        "crcmod has no C extension here: it computes each archive's digest in Python, at about "
        "15 MB/s",
        "install a C compiler and Python's headers (Debian: gcc, python3-dev), then "
        "pip install --force-reinstall --no-binary crcmod crcmod",
    )
