"""Tar archives read strictly, from files and from pipes: damage is an error, where `tarfile` takes it for the end."""

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

END = 2 * tarfile.BLOCKSIZE  # bytes: an archive ends with two blocks of zeros
MOST_ZEROS = 2**20 + END  # bytes; archives are filled up to whole records, of 10 kB unless told otherwise
MOST_BYTES = 2**60
MOST_FACTS = 2**20  # bytes of a long name, or of a header of names and values
FACTS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
DAMAGE = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)
COMPRESSIONS: tuple[tuple[bytes, Any], ...] = (
    (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file)),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\0", lzma.LZMAFile),
)


class _Header(tarfile.TarInfo):
    """A member's header. What `TarFile.next` would take for the end of the archive is a ReadError here."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        header = super().frombuf(buf, encoding, errors)
        return header._possible(MOST_FACTS if header.type in FACTS else MOST_BYTES)

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_Header":  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            return super().fromtarfile(tar)._possible(MOST_BYTES)
        except tarfile.EOFHeaderError:  # pyright: ignore[reportAttributeAccessIssue]
            raise  # the end mark
        except (tarfile.HeaderError, ValueError) as error:
            raise tarfile.ReadError(f"its header is damaged, or it was cut there ({error})") from error

    def _possible(self, most: int) -> "_Header":
        if not 0 <= self.size <= most:  # a negative one would lead back, for ever
            raise tarfile.ReadError(f"its header is damaged (a size of {self.size} bytes)")
        return self


class Tar:
    """The members of a tar archive, plain or compressed, in its order: iterate once.

    file: at its beginning; with seekable=False a pipe, say. Raises ValueError, without a file's name, for an archive
    that is damaged, cut, has a hole of zeros, or is followed by another: after the members before that place, and with
    their number. Of compressed ones the checksum is compared.
    """

    def __init__(self, file: BinaryIO, *, seekable: bool = True):
        ahead = _Ahead(file)
        unpack = next((unpack for magic, unpack in COMPRESSIONS if ahead.begins(magic)), None)
        self.compressed = unpack is not None
        plain = _Ahead(unpack(ahead)) if unpack else ahead
        if seekable and not unpack:
            file.seek(0)
            plain = file
        self._file: Any = plain
        self._tar: Any = None
        self._count, self._last = 0, ""

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        try:
            self._tar = tarfile.TarFile(fileobj=self._file, tarinfo=_Header)
            while (member := self._tar.next()) is not None:
                yield member
                self._count, self._last = self._count + 1, member.name
                self._tar.members.clear()
            self._check_end()
        except DAMAGE as error:
            raise ValueError(self._damage(error)) from error

    def read(self, member: tarfile.TarInfo) -> bytes:
        """The bytes of the member that came last. Raises ValueError where the archive ends before it does."""
        try:
            return self._tar.extractfile(member).read()
        except DAMAGE as error:
            raise ValueError(self._damage(error)) from error

    def _damage(self, error: Exception) -> str:
        at = self._tar.offset if self._tar is not None else 0
        before = f"; the {self._count:,} members before that are whole, the last is {self._last}" if self._count else ""
        return f"at byte {at:,}: {error or type(error).__name__}{before}. Copy it again, or leave it out"

    def _check_end(self) -> None:
        """Nothing but zeros may follow the end mark, of which one block has been read."""
        zeros, size = tarfile.BLOCKSIZE, 2**16
        while piece := self._file.read(size):
            rest = piece.lstrip(b"\0")
            if rest:
                block = (len(piece) - len(rest)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
                raise tarfile.ReadError(_after_end(piece[block : block + tarfile.BLOCKSIZE], zeros + block))
            zeros += len(piece)
            if zeros > MOST_ZEROS:
                raise tarfile.ReadError("only zeros follow, more than fill a record: a download that did not finish")
        if zeros < END:
            raise tarfile.ReadError("it was cut inside the end mark")


def _after_end(block: bytes, zeros: int) -> str:
    """Why something follows `zeros` bytes of zeros, which begins with this block."""
    try:
        following = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return f"{zeros:,} zeros, and then more: a hole"
    return (
        f"{zeros:,} zeros, and then the member {following.name}: a hole, or several archives one behind the other, "
        "which are given as files of their own"
    )


class _Ahead:
    """A file or a pipe that is read from its beginning on, and can be looked into before; seeking goes forward only."""

    def __init__(self, file: Any):
        self._file, self._kept, self._at = file, b"", 0

    def begins(self, magic: bytes) -> bool:
        """Whether what follows begins with these bytes."""
        while len(self._kept) < len(magic) and (more := self._file.read(len(magic) - len(self._kept))):
            self._kept += more
        return self._kept.startswith(magic)

    def read(self, size: int) -> bytes:
        pieces, wanted = [self._kept[:size]], size - len(self._kept[:size])
        self._kept = self._kept[size:]
        while wanted > 0 and (piece := self._file.read(min(wanted, 2**24))):
            pieces.append(piece)
            wanted -= len(piece)
        found = b"".join(pieces)
        self._at += len(found)
        return found

    def tell(self) -> int:
        return self._at

    def seek(self, position: int) -> int:
        if position < self._at:
            raise OSError("its members overlap")
        while self._at < position and self.read(min(position - self._at, 2**20)):
            pass
        return self._at
