"""Containers of files: folders, zip and tar archives, as names and a way to open each from any thread."""

import io
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from justimage.data.tars import Tar
from justimage.data.zips import open_zip, zip_name
from justimage.disk.cache import state_of

# What Pillow opens by itself; not EPS, which needs Ghostscript, and not BUFR, GRIB, HDF5, MPEG and WMF, of which it
# knows the beginning only.
# fmt: off
IMAGES = frozenset({
    ".apng", ".avif", ".avifs", ".blp", ".bmp", ".bw", ".cur", ".dcx", ".dds", ".dib", ".fit", ".fits", ".flc", ".fli",
    ".ftc", ".ftu", ".gbr", ".gif", ".icb", ".icns", ".ico", ".iim", ".im", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc",
    ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".msp", ".pbm", ".pcd", ".pcx", ".pfm", ".pgm", ".png", ".pnm", ".ppm",
    ".psd", ".pxr", ".qoi", ".ras", ".rgb", ".rgba", ".sgi", ".tga", ".tif", ".tiff", ".vda", ".vst", ".webp", ".xbm",
    ".xpm",
})
# fmt: on
TARS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
# What justimage leaves in the folders it writes: a run, an inspection, samples, a pack.
FACT_FILES = frozenset({"recipe.json", "inspection.json", "samples.json", "index.json"})
FACTS_READ = 64 * 2**10  # bytes; of larger files only the two ends are read
FACTS_END = 4 * 2**10
MOST_VISITS = 64  # of one folder, by different links


class Container(Protocol):
    """Names with / between their parts, the size of each, and a way to open them from any thread."""

    sizes: dict[str, int]
    left_out: list[str]
    """Folders in it that justimage wrote."""
    repeated: int
    """Files whose name occurs again later: as in extraction, the later one counts."""

    def open(self, name: str) -> BinaryIO: ...

    def state(self) -> str:
        """A hash that changes when the container does."""
        ...


def clean(name: str) -> str:
    """A name without empty parts and dots: /a//./b.png, which `tar -P` may write, is a/b.png."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def suffix_of(name: str) -> str:
    """The last suffix of a name in lower case, with its dot; empty where there is none."""
    return os.path.splitext(name)[1].lower()


def written_by_justimage(folder: Path) -> bool:
    """Whether justimage wrote a folder: a run, an inspection, samples or a pack. Its pictures are outputs, not data.

    A file of facts in the folder, one of FACT_FILES, names justimage as its author.
    """
    return any(_says_justimage(folder / name) for name in FACT_FILES)


def _says_justimage(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            text = file.read(FACTS_READ)
            if file.read(1):
                file.seek(-FACTS_END, os.SEEK_END)
                text = text[:FACTS_END] + file.read()
    except OSError:  # it is not there, or cannot be read
        return False
    return re.search(rb'"justimage(["-])', text) is not None


def holds(folder: Path, suffixes: frozenset[str], besides: str = "") -> bool:
    """Whether a file with one of these suffixes lies in a folder, or below it in folders that justimage did not write.

    The first one found decides, so that large folders are not walked through. besides: a file name that does not count.
    """
    return any(entry.name != besides and suffix_of(entry.name) in suffixes for _, entry in _walk(folder, []))


def _walk(root: Path, left_out: list[str]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """The files below a folder, with the path in it that they lie under. Links are followed, but not back.

    Hidden files are left out, and so are folders that justimage wrote, which are added to left_out. Raises OSError for
    folders that cannot be read, and ValueError where links lead into one folder again and again.
    """
    visits: dict[tuple[int, int], int] = {}

    def enter(folder: str, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, os.DirEntry[str]]]:
        of = os.stat(folder)
        here = (of.st_dev, of.st_ino)
        if here in above:
            return  # a link back to where it came from
        visits[here] = visits.get(here, 0) + 1
        if visits[here] > MOST_VISITS:
            raise ValueError(
                f"{root} holds links that lead to one folder in more than {MOST_VISITS} ways, the last {prefix}; "
                "remove some of them"
            )
        with os.scandir(folder) as found:
            entries = [entry for entry in found if not entry.name.startswith(".")]
        facts = any(entry.name in FACT_FILES for entry in entries)
        if prefix and facts and written_by_justimage(Path(folder)):
            left_out.append(prefix)
            return
        for entry in entries:
            if _is_folder(entry):
                yield from enter(entry.path, f"{prefix}{entry.name}/", above | {here})
            else:
                yield prefix, entry

    return enter(str(root), "", frozenset())


class Folder:
    """The files below a folder, by their path in it; links are followed, but not back to a folder they lie in.

    Hidden files, and folders in it that justimage wrote, are left out. Raises OSError for folders that cannot be read,
    and ValueError for webs of links.
    """

    def __init__(self, root: Path):
        self.root = root
        self.left_out: list[str] = []
        self.repeated = 0
        self.sizes: dict[str, int] = {}
        self._strange: set[str] = set()
        for prefix, entry in _walk(root, self.left_out):
            found = _stat(entry)
            self.sizes[prefix + entry.name] = found.st_size if found else 0
            if found and not stat.S_ISREG(found.st_mode):
                self._strange.add(prefix + entry.name)

    def open(self, name: str) -> BinaryIO:
        """The file of this name. ValueError for a pipe, a socket or a device, which would be waited for."""
        if name in self._strange:
            raise ValueError("it is not a file, but a pipe, a socket or a device")
        return open(os.path.join(self.root, name), "rb")

    def state(self) -> str:
        """A hash of the files' places, sizes and times of change."""
        return state_of(path for path in (self.root / name for name in self.sizes) if path.exists())


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    """What the system says of a file; None for a broken link, which is reported when it is opened."""
    try:
        return entry.stat()
    except OSError:
        return None


class Zip:
    """The members of a zip archive. Threads may share it: zipfile locks the file while it reads."""

    def __init__(self, path: Path):
        self.path = path
        self.archive = open_zip(path)
        members = [each for each in self.archive.infolist() if not each.is_dir()]
        self._members = {clean(zip_name(each).replace("\\", "/")): each for each in members}
        self.left_out: list[str] = []
        self.repeated = len(members) - len(self._members)
        self.sizes = {name: each.file_size for name, each in self._members.items()}

    def open(self, name: str) -> BinaryIO:
        """The member of this name, decompressed: to seek in a compressed member, zipfile starts over."""
        try:
            return io.BytesIO(self.archive.read(self._members[name]))
        except Exception as error:  # damaged, encrypted, or compressed in an unknown way
            raise ValueError(f"it cannot be read from the archive: {error}") from error

    def state(self) -> str:
        """A hash of the archive's place, size and time of change."""
        return state_of([self.path])


class Tars:
    """The members of tar archives, in the archives' order; with several archives, under the archive's name.

    Plain archives are indexed once and read in any order. Compressed ones cannot be; they are unpacked into memory,
    up to memory_gb. Raises ValueError for larger ones, and for damaged ones.
    """

    def __init__(self, paths: Sequence[Path], memory_gb: float):
        self.paths = paths
        self.sizes: dict[str, int] = {}
        self.left_out: list[str] = []
        self.repeated = 0
        self._where: dict[str, tuple[int, int] | bytes] = {}
        self._files: list[BinaryIO] = []
        self._room = memory_gb * 2**30
        allow_open_files(len(paths))
        common = os.path.commonpath([path.parent for path in paths])
        for path in paths:
            prefix = "" if len(paths) == 1 else f"{os.path.relpath(path, common)}/"
            try:
                self._files.append(path.open("rb"))
                self._index(Tar(self._files[-1]), prefix)
            except (ValueError, OSError) as error:
                raise ValueError(f"{path} cannot be read as a tar archive: {error}") from error

    def _index(self, tar: Tar, prefix: str) -> None:
        for member in tar:
            name = prefix + clean(member.name)
            if name in self.sizes:
                self.repeated += 1
            if member.islnk() or member.issym():  # a second name for an earlier member
                folder = os.path.dirname(member.name) if member.issym() else ""
                target = prefix + clean(os.path.normpath(os.path.join(folder, member.linkname)))
                if target in self._where:
                    self.sizes[name], self._where[name] = self.sizes[target], self._where[target]
                elif suffix_of(name) in IMAGES:
                    raise ValueError(f"{name} is a link to {member.linkname}, which is not before it in the archive")
                continue
            if not member.isfile():
                continue
            if member.issparse():
                raise ValueError(f"{name} is stored with holes; make the archive without tar's --sparse")
            if tar.compressed:
                self._room -= member.size
                if self._room < 0:
                    raise ValueError(
                        "it is compressed and holds more than --data-options.memory-gb; raise that, unpack it, or "
                        "decompress it to a plain .tar, which is read in any order"
                    )
                self._where[name] = tar.read(member)
            else:
                self._where[name] = (len(self._files) - 1, member.offset_data)
            self.sizes[name] = member.size

    def open(self, name: str) -> BinaryIO:
        """The member of this name."""
        where = self._where[name]
        if isinstance(where, bytes):
            return io.BytesIO(where)
        archive, offset = where
        return io.BufferedReader(_Part(self._files[archive].fileno(), offset, self.sizes[name]))

    def state(self) -> str:
        """A hash of the archives' places, sizes and times of change."""
        return state_of(self.paths)


class _Part(io.RawIOBase):
    """Some bytes of an open file. Each has its own position, so that threads share the file."""

    def __init__(self, descriptor: int, offset: int, size: int):
        self._descriptor, self._offset, self._size, self._at = descriptor, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._at))
        data = os.pread(self._descriptor, wanted, self._offset + self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def is_tar(path: Path) -> bool:
    """Whether a path is named like a tar archive."""
    return path.name.lower().endswith(TARS)


def allow_open_files(count: int) -> None:
    """Let this process keep `count` more files open. Raises ValueError where the system does not allow that many."""
    try:
        import resource
    except ImportError:  # not on every system
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 512
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise ValueError(
            f"{count:,} files must be open at once, but the system allows {hard:,}; raise that (ulimit -n)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
