"""Zip archives opened strictly: a damaged directory is an error, and names are what they were."""

import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

ZIP_END_READ = 2**16 + 22 + 76  # bytes: the longest comment, and the records at a zip's end
UNICODE_NAME, UNICODE_PATH = 0x800, 0x7075  # the flag of a name in UTF-8, and the field that holds one


def open_zip(path: Path) -> zipfile.ZipFile:
    """A zip archive with as many members as its last record says. Raises ValueError where it is damaged."""
    try:
        archive = zipfile.ZipFile(path)
        with path.open("rb") as file:
            said = members_said(file)
    except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a zip archive: {error}") from error
    there = len(archive.infolist())
    if said != there:
        archive.close()
        raise ValueError(
            f"{path} cannot be read as a zip archive: its directory is damaged, and lists {there:,} of {said:,} "
            "members; copy it again"
        )
    first = min((member.header_offset for member in archive.infolist()), default=0)
    with path.open("rb") as file:
        if first and file.read(4) == b"PK\x03\x04":
            archive.close()
            raise ValueError(
                f"{path} cannot be read as a zip archive: {first:,} bytes with other members stand before the first "
                "one of its directory, perhaps of another archive; give the archives as files of their own"
            )
    return archive


def members_said(file: BinaryIO) -> int:
    """The number of members in the record at the end of a zip, or for many in the larger record before it."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - ZIP_END_READ))
    end = file.read()
    at = end.rindex(b"PK\x05\x06")
    (count,) = struct.unpack_from("<H", end, at + 10)
    before = end[max(0, at - 76) : at]  # 56 bytes of the larger record, and 20 that say where it is
    if count == 0xFFFF and before.startswith(b"PK\x06\x06"):
        (count,) = struct.unpack_from("<Q", before, 32)
    return count


def zip_name(member: zipfile.ZipInfo) -> str:
    """The name of a member. Where no flag says that it is UTF-8, it is nevertheless, if it can be.

    Info-ZIP, the `zip` of most systems, keeps the name in a field of its own, with a CRC-32 of the other one.
    """
    if member.flag_bits & UNICODE_NAME:
        return member.filename
    raw = member.orig_filename.encode("cp437")  # as zipfile decoded it
    extra = member.extra
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == UNICODE_PATH and len(field) > 5 and struct.unpack_from("<BL", field) == (1, zlib.crc32(raw)):
            raw = field[5:]
    try:
        return raw.decode().partition("\0")[0]
    except UnicodeDecodeError:
        return member.filename
