"""Shards: tar files of images and labels, as WebDataset writes them.

The headers of each tar file are read once, and each image later at its place, so that order, split
and shares are those of files. https://github.com/webdataset/webdataset describes the format: the
members of a sample follow each other, have one key, the name up to its first dot, and are told
apart by what comes after it, as in 0001.jpg and 0001.cls.
"""

import json
import os
import re
import unicodedata
import warnings
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import torch

from alexnet_lib import interrupts
from alexnet_lib.checks import did_you_mean, shown
from alexnet_lib.data.decoding import IMAGE_SUFFIXES, open_regular
from alexnet_lib.data.folders import (
    Notes,
    PartNames,
    Reading,
    decoded_if_small,
    entries_of,
    given_parts,
    is_folder,
    listed,
    part_in,
)
from alexnet_lib.data.images import LABEL_KEYS, MAX_CLASSES, ImageSet, ImageShards
from alexnet_lib.data.paths import Paths
from alexnet_lib.text import printable, progress_bar

SHARD_SUFFIX = ".tar"
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
CLASSES_FILE = "classes.txt"

_BLOCK = 512  # bytes, of tar files
_END = bytes(_BLOCK)
_CHUNK_BYTES = 1 << 20
# Of a label, or of what a header says beside it.
_MOST_TEXT_BYTES = 1 << 20
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_SHARDS = 1_000_000


def expanded(path: Path) -> list[Path]:
    """The paths of a name with a range, as in ``train-{000..099}.tar``; else the path alone."""
    found = _RANGE.search(path.name)
    if found is None or path.exists():
        return [path]
    first, last = int(found[1]), int(found[2])
    if not first <= last < first + _MOST_SHARDS:
        raise ValueError(
            f"data is {str(path)!r}; expected a range from a number to a larger one, of up to "
            f"{_MOST_SHARDS:,} shards"
        )
    head, tail = path.name[: found.start()], path.name[found.end() :]
    return [
        path.with_name(f"{head}{number:0{len(found[1])}}{tail}")
        for number in range(first, last + 1)
    ]


def find_shards(path: Path, parts: PartNames | None = None) -> dict[str, list[Path]]:
    """The shards of the parts ``train``, ``validation`` and ``test``; {}: there are none.

    ``path`` is a tar file, a name with a range, or a folder of shards without folders of classes:
    of shards alone, with the names of their parts or all for training, or of folders of parts.
    """
    if not path.is_dir():
        files = expanded(path)
        if not _is_shard(path.name):
            return {}
        if missing := [file.name for file in files if not file.is_file()]:
            raise FileNotFoundError(f"{path}: no such file{_about(missing, path, len(files))}")
        if parts:
            raise ValueError(f"parts is given, but data is {str(path)!r}; expected a folder")
        return {"train": files}
    if parts:
        folders = given_parts(path, parts)
        found = {part: _shards_in(folder) for part, folder in folders.items()}
        if any(found.values()) and not all(found.values()):
            lacking = next(part for part, shards in found.items() if not shards)
            raise ValueError(f"{folders[lacking]} has no shards; expected some, as the other parts")
        return found if any(found.values()) else {}
    entries = entries_of(path)
    folders = {entry.name: Path(entry.path) for entry in entries if is_folder(entry)}
    if not folders:
        return _by_name(path, _shards_in(path), all_train=parts is not None)
    found = {}
    for name, folder in folders.items():
        if parts is None and (part := part_in(name)) and (shards := _shards_in(folder)):
            if part in found:
                raise ValueError(f"{path} has two folders of shards of the {part} part")
            found[part] = shards
    if not found:
        return {}
    if "train" not in found:
        raise ValueError(f"{path} has shards of {sorted(found)}; expected a training part")
    used = {shards[0].parent.name for shards in found.values()} | {CLASSES_FILE}
    Notes([entry.name for entry in entries if entry.name not in used]).warn(path)
    return found


def _about(missing: list[str], path: Path, count: int) -> str:
    """What else there is to say of files that do not exist."""
    if any(sign in missing[0] for sign in "{*?"):
        return "; expected a file, a folder, or a name with one range, as in train-{000..099}.tar"
    near = did_you_mean(path.name, os.listdir(path.parent)) if path.parent.is_dir() else ""
    return near + (f": {listed(missing)}" if count > 1 else "")


def _is_shard(name: str) -> bool:
    lower = name.lower()
    if lower.endswith(_COMPRESSED):
        raise ValueError(
            f"{printable(name)} is compressed, so that its images cannot be read at their places; "
            "expected shards that end in .tar: unpack it first (gunzip, for .gz)"
        )
    return lower.endswith(SHARD_SUFFIX)


def _shards_in(folder: Path) -> list[Path]:
    """The tar files of a folder without images and folders; the rest is named in a warning."""
    entries = entries_of(folder)
    if any(is_folder(e) or e.name.lower().endswith((*IMAGE_SUFFIXES,)) for e in entries):
        return []
    tars = [entry for entry in entries if entry.name.lower().endswith(SHARD_SUFFIX)]
    if not tars:
        for entry in entries:
            _is_shard(entry.name)  # compressed ones are an error
        return []
    others = [entry.name for entry in entries if not _is_shard(entry.name)]
    Notes([name for name in others if name != CLASSES_FILE]).warn(folder)
    return [Path(entry.path) for entry in tars]


def _by_name(folder: Path, shards: list[Path], *, all_train: bool) -> dict[str, list[Path]]:
    """Shards by the part that their names have, as train-000.tar; without one, for training."""
    found: dict[str, list[Path]] = {}
    for shard in shards:
        part = None if all_train else part_in(shard.stem, exact=False)
        found.setdefault(part or "", []).append(shard)
    if [*found] == [""]:
        return {"train": shards}
    if found and ("" in found or "train" not in found):
        counts = [f"{len(group)} of {part or 'no part'}" for part, group in found.items()]
        raise ValueError(
            f"{folder} has shards by their names: {listed(counts)}; expected train-000.tar and so "
            "on, each with the name of a part: pass a mapping of 'train' and 'test' to names such "
            "as 'a-{00..09}.tar' as data, or parts={} (--part none) if all are training shards"
        )
    return found


def open_shards(
    shards: Sequence[Path],
    reading: Reading,
    *,
    classes: tuple[str, ...] | None = None,
    training: tuple[str, ...] | None = None,
    numbered: tuple[str, ...] | None = None,
) -> ImageSet:
    """The images of a part, from the headers of its shards.

    ``classes`` are the names of the classes, by label; None takes them from ``classes.txt`` beside
    the shards or above them, or else from ``numbered``, what that of the training part says.
    ``training`` are the classes of the training part, which are those of this one.
    """
    source = str(shards[0]) if len(shards) == 1 else str(shards[0].parent)
    named = classes or class_names(shards[0].parent) or numbered
    index = _Index()
    for shard in progress_bar(shards, f"index of {printable(source)}", disable=None, leave=False):
        index.add(shard)
    if not len(index.members):
        raise ValueError(f"{source} has no images; expected members such as 0001.jpg and 0001.cls")
    Notes([f"{count:,} members *.{end}" for end, count in index.unused.items()]).warn(Path(source))
    own = named or training or _names_of(index.labels, source)
    names = training or own
    numbers = _numbers_of(index.labels, own, source, by_number=named is not None)
    if own != names:
        positions = {name: number for number, name in enumerate(names)}
        if others := {own[number] for number in numbers} - {*names}:
            raise ValueError(
                f"{source} has the classes {listed(sorted(others))}; expected {shown(names)}"
            )
        numbers = [positions[own[number]] for number in numbers]
    labels = torch.tensor(numbers)[torch.tensor(index.label_of, dtype=torch.int64)]
    if len(names) < 2 and reading.to_learn:
        raise ValueError(f"{source} has one label, {names[0]!r}; expected at least two")
    if empty := [names[i] for i in sorted({*range(len(names))} - {*numbers})]:
        text = f"{source} has no images for the classes {listed(empty)}"
        if training is None and named is None and reading.to_learn:
            raise ValueError(f"{text}; expected some, or classes=... (--classes) with all names")
        warnings.warn(text, stacklevel=5)
    images = ImageShards(
        index.members,
        torch.tensor(index.offsets, dtype=torch.int64),
        torch.tensor(index.sizes, dtype=torch.int64),
        index.versions,
        labels,
        names,
        reading.channels,
        reading.background,
    )
    return decoded_if_small(images, reading, source)


def class_names(folder: Path) -> tuple[str, ...] | None:
    """The lines of ``classes.txt`` in the folder of the shards or above it, if there is one."""
    files = [path / CLASSES_FILE for path in (folder, folder.parent)]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return None
    try:
        names = tuple(line.strip() for line in _text(file.read_bytes()).splitlines())
    except ValueError as error:
        raise ValueError(f"{file} {error}") from None
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not all(names) or twice or not 2 <= len(names) <= MAX_CLASSES:
        more = f", and {listed(twice)} more than once" if twice else ""
        raise ValueError(
            f"{file} has {len(names):,} lines{more}; expected the name of a class in each, all "
            "different"
        )
    return names


def _is_number(label: str) -> bool:
    return label.isascii() and label.isdecimal() and len(label) < 20


def _plain(label: str) -> str:
    """A number without zeros before it; else the label."""
    return str(int(label)) if _is_number(label) else label


def _names_of(labels: Collection[str], source: str) -> tuple[str, ...]:
    """The names of the classes: the labels themselves, or all numbers up to the largest."""
    numbers = [label for label in labels if _is_number(label.removeprefix("-"))]
    others = sorted({*labels} - {*numbers})
    negative = [label for label in numbers if label.startswith("-")]
    if negative or (numbers and others):
        raise ValueError(
            f"{source} has the labels {listed(negative or [numbers[0], others[0]])}; expected "
            "numbers from 0, or names; or classes=... (--classes) with all of them as names"
        )
    if others:
        return tuple(others)
    largest = max(map(int, labels))
    if largest >= MAX_CLASSES:
        raise ValueError(f"data has the label {largest}; expected 0 to {MAX_CLASSES - 1:,}")
    return tuple(map(str, range(largest + 1)))


def _numbers_of(
    labels: Iterable[str], names: tuple[str, ...], source: str, *, by_number: bool
) -> list[int]:
    """The class of each label, which is a name or, of classes that were named, a number.

    Names that are numbers themselves are only names.
    """
    by_number = by_number and not any(map(_is_number, names)) and all(map(_is_number, labels))
    expected = (
        f"0 to {len(names) - 1}, the numbers of {shown(names)}" if by_number else shown(names)
    )
    positions = {name: number for number, name in enumerate(names)}
    if by_number:
        positions = {str(number): number for number in range(len(names))}
    known = [label if label in positions else _plain(label) for label in labels]
    if unknown := [label for label in known if label not in positions]:
        raise ValueError(f"{source} has the labels {listed(unknown)}; expected {expected}")
    return [positions[label] for label in known]


class _Index:
    """Where the images of shards lie, and their labels, by number in ``labels``."""

    def __init__(self) -> None:
        self.members, self.offsets, self.sizes = Paths(), array("q"), array("q")
        self.label_of, self.labels = array("q"), dict[str, int]()
        self.versions: dict[str, tuple[int, int]] = {}
        self.unused = Counter[str]()

    def add(self, shard: Path) -> None:
        """Reads the headers of a shard, and its labels."""
        with ExitStack() as stack:
            try:
                stream = stack.enter_context(open_regular(shard))
            except ValueError as error:
                raise ValueError(f"{shard}: {error}") from None
            status = os.fstat(stream.fileno())
            self.versions[str(shard)] = status.st_size, status.st_mtime_ns
            bad: dict[str, list[str]] = {}
            for key, members in _samples(_members(stream, shard, status.st_size)):
                interrupts.check()
                if lacks := self._add_sample(stream, shard, key, members):
                    bad.setdefault(lacks, []).append(key)
        if bad:
            texts = [f"no {lacks} for {listed(keys)}" for lacks, keys in bad.items()]
            raise ValueError(
                f"{shard} has {'; '.join(texts)}; expected for each key (a name up to its first "
                "dot) an image and a label, as 0001.jpg and 0001.cls (or 0001.json with 'label'), "
                "one behind the other"
            )

    def _add_sample(
        self, stream: IO[bytes], shard: Path, key: str, members: Mapping[str, "_Member"]
    ) -> str:
        """Takes the image and the label of a key; or says what it lacks."""
        images = [end for end in members if f".{end}" in IMAGE_SUFFIXES]
        if len(images) > 1:
            raise ValueError(f"{shard} has two images for {printable(key)}: {listed(images)}")
        end = "cls" if "cls" in members else "json"
        self.unused.update(members.keys() - {end, *images})
        if not images:
            return "image"
        if end not in members:
            return "label"
        name, offset, size = members[end]
        stream.seek(offset)
        try:
            if size > _MOST_TEXT_BYTES:
                raise ValueError(f"has {size:,} bytes; expected a label")
            label = _text(stream.read(size))
            label = _label_in(label) if end == "json" else label.strip()
        except ValueError as error:
            raise ValueError(f"{shard}: {printable(name)} {error}") from None
        if not label:
            return "label"
        name, offset, size = members[images[0]]
        self.members.append(str(shard), name.lstrip("/"))
        self.offsets.append(offset)
        self.sizes.append(size)
        self.label_of.append(self.labels.setdefault(label, len(self.labels)))
        return ""


def _text(content: bytes) -> str:
    try:
        return unicodedata.normalize("NFC", content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError(f"is {shown(content)}; expected UTF-8") from None


def _label_in(text: str) -> str:
    """The label of a JSON object; nothing if it has none."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON: {error}") from None
    keys = ("cls", *LABEL_KEYS)
    if not isinstance(values, Mapping) or not (present := [key for key in keys if key in values]):
        return ""
    label = values[present[0]]
    if isinstance(label, bool) or not isinstance(label, int | str):
        raise ValueError(f"has the label {shown(label)}; expected an integer or a name")
    return str(label).strip()


# Name, first byte and number of bytes.
_Member = tuple[str, int, int]


def _samples(members: Iterable[_Member]) -> Iterator[tuple[str, dict[str, _Member]]]:
    """The keys with their members, by what their names have behind the first dot."""
    key, sample = "", dict[str, _Member]()
    for member in members:
        folder, slash, last = member[0].rpartition("/")
        if last.startswith("."):  # of macOS
            continue
        stem, _, end = last.partition(".")
        if sample and folder + slash + stem != key:
            yield key, sample
            sample = {}
        key, end = folder + slash + stem, end.lower()
        if end in sample:
            raise ValueError(f"two members of a shard have the name {printable(member[0])}")
        sample[end] = member
    if sample:
        yield key, sample


def _members(stream: IO[bytes], shard: Path, length: int) -> Iterator[_Member]:
    """The files in a tar file, whose content is passed over.

    ``tarfile`` of Python, which knows more kinds of members, takes five times as long.
    """
    position, name, size = 0, None, None
    while True:
        stream.seek(position)
        header = stream.read(_BLOCK)
        if header in {_END, b""}:
            break
        stated = _size_in(header)
        if stated is None:
            raise ValueError(
                f"{shard} has no header of a tar file at byte {position:,} of {length:,}; expected "
                "a tar file that is complete and not compressed"
            )
        kind, start = header[156:157], position + _BLOCK
        size = stated if size is None else size
        if kind == b"5":  # some programs give folders a size, but no content
            size = 0
        position = start + -(-size // _BLOCK) * _BLOCK
        own = _name(header)
        if start + size > length:
            raise ValueError(
                f"{shard} is cut off in {printable(name or own)}: it has {length:,} bytes; "
                f"expected {position:,} or more"
            )
        if kind in b"xL":  # of the next member
            if size > _MOST_TEXT_BYTES:
                raise ValueError(f"{shard} has a header of {size:,} bytes; expected a tar file")
            text = stream.read(size)
            size = None
            if kind == b"L":
                name = os.fsdecode(text.rstrip(b"\0"))
            else:
                name, size = _extended(text, shard, name)
            continue
        if kind in {b"0", b"\0"}:
            yield name or own, start, size
        elif kind not in b"5gK":
            raise ValueError(
                f"{shard} has {printable(name or own)}, a link or a device; expected plain files: "
                "pack it without links (tar --dereference --hard-dereference)"
            )
        name = size = None
    _check_end(stream, shard, header)


def _check_end(stream: IO[bytes], shard: Path, header: bytes) -> None:
    """Warns if a tar file has no mark at its end; an error if something comes behind it."""
    if not header:
        warnings.warn(
            f"{shard} has no mark at its end: it is complete only if nothing was cut off",
            stacklevel=7,
        )
    while chunk := stream.read(_CHUNK_BYTES):
        if chunk.count(0) < len(chunk):
            raise ValueError(
                f"{shard} has more behind its end; expected one archive: take it apart if several "
                "were joined"
            )


def _size_in(header: bytes) -> int | None:
    """The size of a member; None if this is no header, by its checksum."""
    try:
        checksum = int(header[148:156].rstrip(b"\0 "), 8)
        if sum(header) - sum(header[148:156]) + 8 * ord(" ") != checksum or len(header) < _BLOCK:
            return None
        field = header[124:136]
        if field[0] == 0x80:  # not in octal digits, from 8 GiB on
            return int.from_bytes(field[1:], "big")
        return int(field.rstrip(b"\0 ") or b"0", 8)
    except ValueError:
        return None


def _name(header: bytes) -> str:
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    return os.fsdecode(name)


def _extended(text: bytes, shard: Path, name: str | None) -> tuple[str | None, int | None]:
    """Name and size of the next member, if its extended header says them."""
    size = None
    while text:
        count, _, rest = text.partition(b" ")
        if not count.isdigit() or not len(count) < int(count) <= len(text):
            raise ValueError(f"{shard} has a damaged extended header; expected a tar file")
        key, _, value = rest[: int(count) - len(count) - 2].partition(b"=")
        text = text[int(count) :]
        if key == b"path":
            name = os.fsdecode(value)
        elif key == b"size" and value.isdigit():
            size = int(value)
        elif key.startswith(b"GNU.sparse"):
            raise ValueError(f"{shard} has a sparse file; expected plain ones (tar without -S)")
    return name, size
