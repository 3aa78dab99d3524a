"""Archives: tar, zip, WebDataset shards and streams; cut, flipped, with holes, glued, with wrong members and names."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..case import Case, Rng, choose, pick
from ..damage import BYTES, flip_at
from ..samples import CLASSES, Photo, Read, data_case, photos

Members = list[tuple[str, bytes]]
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gz": partial(gzip.compress, mtime=0),
    "xz": lzma.compress,
    "bz2": bz2.compress,
}


def tar_of(members: Members, compression: str = "", links: dict[str, str] | None = None, kind: bytes = b"") -> bytes:
    """A tar archive; links are symbolic unless a type is given."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind or tarfile.SYMTYPE, target
            archive.addfile(member)
    return COMPRESS[compression](file.getvalue())


def zip_of(members: Members) -> bytes:
    """A zip archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)  # without the time
    return file.getvalue()


class Good:
    """A good archive of one of the kinds: its name, members, bytes, and what must be read from it."""

    def __init__(self, rng: Rng):
        self.kind = pick(rng, ("tar", "tar", "tar", "zip", "zip", "shard", "shard", "stream"))
        self.compression = pick(rng, ("", "", "", "gz", "xz", "bz2")) if self.kind == "tar" else ""
        self.suffix = {"zip": ".zip", "tar": ".tar" + (f".{self.compression}" if self.compression else "")}.get(
            self.kind, ".tar"
        )
        self.photos = photos(rng)
        self.with_labels = self.kind in ("shard", "stream")
        self.members = [each for photo in self.photos for each in self.members_of(photo)]
        self.reads: list[Read] = [self.read_of(photo) for photo in self.photos]
        self.options = ("--data-options.stream.classes", "3") if self.kind == "stream" else ()

    def members_of(self, photo: Photo) -> Members:
        """The members that a photo becomes."""
        if self.with_labels:
            return [(f"{photo.name}.png", photo.png), (f"{photo.name}.cls", str(self.label(photo)).encode())]
        return [(f"{photo.label}/{photo.name}.png", photo.png)]

    def read_of(self, photo: Photo) -> Read:
        """What must be read of a photo: classes are called by numbers where labels are numbers."""
        return (photo.read[0], str(self.label(photo))) if self.with_labels else photo.read

    def label(self, photo: Photo) -> int:
        """The number of a photo's class."""
        return CLASSES.index(photo.label)

    def encoded(self, members: Members | None = None) -> bytes:
        """The archive."""
        members = self.members if members is None else members
        return zip_of(members) if self.kind == "zip" else tar_of(members, self.compression)

    def write(self, data: bytes, name: str = "") -> str:
        """Write it -> the path that is given to the command."""
        name = name or f"set{self.suffix}"
        Path(name).write_bytes(data)
        return f"pipe:cat {name}" if self.kind == "stream" else name

    def case(self, rng: Rng, mutation: str, data: bytes, reads: list[Read] | None, **known) -> Case:
        """The archive with these bytes, as a case."""
        return data_case(rng, mutation, self.write(data), reads, *self.options, **known)


ASIDE = ("left aside",)


def none(rng: Rng, good: Good) -> Case:
    """The archive as it is."""
    return good.case(rng, "none", good.encoded(), good.reads, expect="accept")


def damaged(how: str) -> Callable[[Rng, Good], Case]:
    """Damage to its bytes, but not to labels, which no checksum protects."""

    def mutation(rng: Rng, good: Good) -> Case:
        data = good.encoded()
        after = BYTES[how](rng, data)
        reads = good.reads if how not in ("flip", "garbage") or _same_labels(good, data, after) else None
        # A name that lost its suffix is no image any more, in a directory that has no checksum: it is counted aloud.
        return good.case(rng, how, after, reads, expect="accept" if after == data else "either", aloud=ASIDE)

    return mutation


def _same_labels(good: Good, data: bytes, after: bytes) -> bool:
    """Whether the bytes of the labels in a plain tar are as they were: that they are others, no reader can know."""
    if not good.with_labels:
        return True
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        places = [(member.offset_data, member.size) for member in archive if member.name.endswith(".cls")]
    return all(after[start : start + size] == data[start : start + size] for start, size in places)


def header_flipped(rng: Rng, good: Good) -> Case:
    """One bit in the header of a member; in a zip, in its directory."""
    data = good.encoded()
    if good.kind == "zip":
        begin = data.index(b"PK\1\2")
        place = int(rng.integers(begin, len(data)))
    elif good.compression:
        place = int(rng.integers(min(32, len(data))))
    else:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            place = pick(rng, archive.getmembers()).offset + int(rng.integers(512))
    aloud = ASIDE if good.kind == "zip" else ()  # a directory of names has no checksum, as in `damaged`
    return good.case(rng, "header flipped", flip_at(rng, data, place), good.reads, aloud=aloud)


def glued(rng: Rng, good: Good) -> Case:
    """Two archives one after the other: cat a.tar b.tar."""
    half = len(good.photos) // 2
    cut = half * (2 if good.with_labels else 1)
    data = good.encoded(good.members[:cut]) + good.encoded(good.members[cut:])
    return good.case(rng, "glued", data, good.reads)


def duplicated(rng: Rng, good: Good) -> Case:
    """A member twice, with other contents: tar's rule is that the last one counts."""
    victim, other = good.photos[0], photos(rng, 1)[0]
    name = good.members[0][0]
    twice = [*good.members, (name, other.png)]
    reads = None if good.kind == "stream" else [(other.read[0], good.reads[0][1]), *good.reads[1:]]
    return good.case(rng, "duplicated", good.encoded(twice), reads, words=[name, victim.name])


def named(what: str, change: Callable[[str], str]) -> Callable[[Rng, Good], Case]:
    """Members with other names; an absolute or `..` name never leads out of the archive."""

    def mutation(rng: Rng, good: Good) -> Case:
        members = [(change(name), data) for name, data in good.members]
        return good.case(rng, what, good.encoded(members), None, words=["names"])

    return mutation


def link(rng: Rng, good: Good) -> Case:
    """A link to a member, to nothing, to itself, or out of the archive."""
    if good.kind == "zip":
        return none(rng, good)
    target = pick(rng, (good.members[0][0], "nowhere.png", "ant/link.png", "/etc/passwd", "../../secret.png"))
    kind = pick(rng, (tarfile.SYMTYPE, tarfile.LNKTYPE))
    data = tar_of(good.members, good.compression, {"ant/link.png": target}, kind)
    return good.case(rng, "link", data, None, words=["link"])


def several_images(rng: Rng, good: Good) -> Case:
    """A key with an image and its mask."""
    mask = photos(rng, 1)[0].png
    more = [(name.replace(".png", ".seg.png"), mask) for name, _ in good.members if name.endswith(".png")]
    members = sorted(good.members + more)
    reads = good.reads if good.with_labels else None  # in class folders, each is an image
    return good.case(rng, "several images", good.encoded(members), reads, words=["seg.png", ".png"])


def garbled(rng: Rng, good: Good) -> Case:
    """Names that are not ASCII, as other systems write them."""
    members = [(name.replace("ant/", "grün/"), data) for name, data in good.members]
    data = good.encoded(members)
    if good.kind == "zip":  # UTF-8 without the flag that says so: the system's `zip`
        for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
            parts = data.split(mark)
            data = mark.join([parts[0], *(p[: at - 4] + b"\0\0" + p[at - 2 :] for p in parts[1:])])
    reads = [(read, "grün" if label == "ant" else label) for read, label in good.reads]
    return good.case(rng, "garbled names", data, reads)


def empty(rng: Rng, good: Good) -> Case:
    """An archive without members, or without images."""
    members = pick(rng, ([], [("readme.txt", b"nothing")]))
    return good.case(rng, "empty", good.encoded(members), None, expect="refuse")


def wrong_suffix(rng: Rng, good: Good) -> Case:
    """Called as if it were of another kind."""
    suffix = pick(
        rng, [each for each in (".zip", ".tar", ".tar.gz", ".tar.xz", ".npz", ".parquet") if each != good.suffix]
    )
    path = good.write(good.encoded(), f"set{suffix}")
    return data_case(rng, "wrong suffix", path, good.reads, *good.options)


def no_labels(rng: Rng, good: Good) -> Case:
    """A sample whose label is gone."""
    if not good.with_labels:
        return none(rng, good)
    members = [each for each in good.members if each[0] != f"{good.photos[1].name}.cls"]
    return good.case(rng, "a label gone", good.encoded(members), None, expect="refuse", words=["001"])


MUTATIONS: dict[str, Callable[[Rng, Good], Case]] = {
    "none": none,
    **{how: damaged(how) for how in BYTES},
    "header flipped": header_flipped,
    "glued": glued,
    "duplicated": duplicated,
    "absolute": named("absolute", lambda name: f"/tmp/{name}"),
    "outside": named("outside", lambda name: f"../../{name}"),
    "dotted": named("dotted", lambda name: f"./{name}"),
    "link": link,
    "several images": several_images,
    "garbled": garbled,
    "empty": empty,
    "wrong suffix": wrong_suffix,
    "a label gone": no_labels,
}


def case(rng: Rng) -> Case:
    """A case of this door."""
    good = Good(rng)
    return choose(rng, MUTATIONS)[1](rng, good)
