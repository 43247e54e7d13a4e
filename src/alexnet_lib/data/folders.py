"""Folders of image files: their parts, their classes, and what else lies in them.

Every entry of a folder is used, or is litter of a file manager, or is named in an error or a
warning.
"""

import math
import os
import re
import unicodedata
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from alexnet_lib import interrupts
from alexnet_lib.checks import Range, check_choice, check_number, shown, type_name
from alexnet_lib.data.decoding import (
    IMAGE_SUFFIXES,
    FilePart,
    ImageError,
    check_background,
    open_image,
)
from alexnet_lib.data.images import EncodedImages, ImageFiles, ImageSet, ImageTensors
from alexnet_lib.data.paths import Paths
from alexnet_lib.devices import generator_for
from alexnet_lib.files import as_path, as_text
from alexnet_lib.text import printable, progress_bar

OnBadImage = Literal["stop", "skip"]

# Images of one size, with sides up to this number of pixels, are decoded once and kept in memory.
SMALL_IMAGE = 96
# Above this number of bytes, which Tiny ImageNet's 100,000 images of 64x64 pixels stay below, they
# are decoded at each access.
MOST_IN_MEMORY = 1 << 31
# The heads of so many files are read to find out whether all are small; of more files, a sample.
_HEADS = 1000

_SUFFIXES = tuple(IMAGE_SUFFIXES)
# Of file managers, archivers and operating systems; and all names that begin with a dot.
_LITTER = frozenset(
    (
        *("__MACOSX", "Thumbs.db", "ehthumbs.db", "desktop.ini", "Desktop.ini", "Icon\r"),
        *("@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__"),
    )
)

_PART_WORDS = {
    "train": {"train", "training", "trn", "trainset", "trainingset"},
    "validation": {"val", "valid", "validation", "dev", "valset", "validset", "validationset"},
    "test": {"test", "testing", "tst", "testset"},
}
# Words that may stand beside those in the name of a part's folder, as in "train_images".
_FILLERS = {"set", "images", "imgs", "data", "split", "seg"}
PartNames = Mapping[str, str | os.PathLike[str]]

BAD_LIMIT = Range("a fraction from 0 to 1", lambda x: 0 <= x <= 1)


@dataclass(frozen=True)
class Reading:
    """How image files become pixels, and what becomes of those that cannot be read.

    The fields are the arguments of ``build_loaders``, and whether a network is to learn the
    classes: at least two then, and images of each.
    """

    channels: int = 3
    background: str = "white"
    on_bad_image: OnBadImage = "stop"
    bad_image_limit: float = 0.1
    to_learn: bool = True

    def __post_init__(self) -> None:
        check_background(self.background)
        check_choice("on_bad_image", self.on_bad_image, get_args(OnBadImage))
        check_number("bad_image_limit", self.bad_image_limit, BAD_LIMIT)


@dataclass
class Notes:
    """What lies in a folder and is not used."""

    paths: list[str] = field(default_factory=list)

    def warn(self, folder: Path) -> None:
        """Names them in a warning, if there are any."""
        if self.paths:
            warnings.warn(
                f"{printable(str(folder))}: {listed(self.paths)} "
                f"{'is' if len(self.paths) == 1 else 'are'} ignored",
                stacklevel=4,
            )


def listed(items: Sequence[object], most: int = 10) -> str:
    """The items with commas; the number of those after the first ``most``."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(printable(str(item)) for item in items[:most]) + more


def part_folders(folder: Path, parts: PartNames | None) -> dict[str, Path]:
    """The folders of the parts ``train``, ``validation`` and ``test``; {}: all are classes."""
    if parts is not None:
        return given_parts(folder, parts)
    names = [entry.name for entry in entries_of(folder) if is_folder(entry)]
    by_part: dict[str, list[str]] = {}
    for name in names:
        if part := part_in(name):
            by_part.setdefault(part, []).append(name)
    matched = [name for group in by_part.values() for name in group]
    others = [name for name in names if name not in matched]
    # A part has folders of classes, a class has images.
    structured = [name for name in matched if _has_folders(folder / name)]
    if not by_part or (others and not structured):
        return {}
    remedy = (
        "name the folders with parts={'train': ..., 'test': ...} (--part train=... --part "
        "test=...), or pass parts={} (--part none) if all of them are classes"
    )
    for part, group in by_part.items():
        if len(group) > 1:
            raise ValueError(f"{folder} has {group}, which both could be the {part} part: {remedy}")
    if "train" not in by_part:
        raise ValueError(f"{folder} has {names}, but no training part: {remedy}")
    if others and (len(structured) < 2 or by_part["train"][0] not in structured):
        raise ValueError(
            f"{folder} has {matched}, which look like parts, beside {listed(others)}: {remedy}"
        )
    for name in matched:
        if name not in structured:
            raise ValueError(
                f"{folder / name} has no folders of classes; expected CLASS/IMAGE.jpg in it, or a "
                f"CSV file of image,label as data; to leave it out, or otherwise, {remedy}"
            )
    if others:
        warnings.warn(
            f"{folder} has {matched}, so {listed(others)} are ignored: to use them, {remedy}",
            stacklevel=4,
        )
    Notes([e.name for e in entries_of(folder) if not is_folder(e)]).warn(folder)
    return {part: folder / group[0] for part, group in by_part.items()}


def given_parts(folder: Path, parts: PartNames) -> dict[str, Path]:
    """The folders of the parts that ``parts`` names."""
    if not isinstance(parts, Mapping):
        raise TypeError(f"parts is a {type_name(parts)}; expected a mapping of parts to folders")
    given = {
        "validation" if key == "val" else key: folder / as_path(name, f"parts[{key!r}]")
        for key, name in parts.items()
    }
    if unknown := [*(set(given) - set(_PART_WORDS))]:
        raise ValueError(f"parts has {shown(unknown)}; expected train, validation and test")
    if given and "train" not in given:
        raise ValueError(f"parts has {sorted(given)}; expected train among them")
    for part, path in given.items():
        if not path.is_dir():
            raise FileNotFoundError(f"parts has {part}={str(path)!r}, which is not a folder")
    return given


def part_in(name: str, *, exact: bool = True) -> str | None:
    """The part that a name says; ``exact``: and nothing but it, as a folder of a part."""
    words = [word for word in re.split(r"[^a-z0-9]+", name.casefold()) if word]
    named = [part for part, own in _PART_WORDS.items() for word in words if word in own]
    fillers = sum(word in _FILLERS for word in words)
    return named[0] if len(named) == 1 and (not exact or len(words) == fillers + 1) else None


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name in _LITTER


def entries_of(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder without litter, sorted by name."""
    with os.scandir(folder) as found:
        return sorted((e for e in found if not _is_litter(e.name)), key=lambda entry: entry.name)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _has_folders(folder: Path) -> bool:
    return any(is_folder(entry) for entry in entries_of(folder))


def files_below(folder: str, notes: Notes) -> list[str]:
    """The image files of a folder and of those below it, also behind links.

    A folder that several links lead to is taken once: a few links could else make millions of
    paths, or endless ones.
    """
    seen: set[str] = set()

    def entries(path: str) -> list[os.DirEntry[str]]:
        real = os.path.realpath(path)
        if real in seen:
            notes.paths.append(f"{path} (a folder that is taken already, behind a link)")
            return []
        seen.add(real)
        return entries_of(Path(path))[::-1]

    files: list[str] = []
    pending = entries(folder)
    while pending:
        interrupts.check()
        entry = pending.pop()
        if is_folder(entry):
            pending += entries(entry.path)
        elif not _is_file(entry):
            notes.paths.append(f"{entry.path} (a link to nothing, or no file)")
        elif entry.name.lower().endswith(_SUFFIXES):
            files.append(entry.path)
        else:
            notes.paths.append(entry.path)
    return files


def class_folders(
    folder: Path,
    reading: Reading,
    *,
    classes: tuple[str, ...] | None = None,
    training: tuple[str, ...] | None = None,
) -> ImageSet:
    """The images of a folder of class folders.

    ``classes`` selects and orders the folders; ``training`` are the classes of the training part,
    of which another part may lack some.
    """
    notes = Notes()
    names: dict[str, str] = {}  # macOS decomposes accents in names, other systems do not
    for entry in entries_of(folder):
        if not is_folder(entry):
            notes.paths.append(entry.path)
            continue
        name = unicodedata.normalize("NFC", as_text(entry.name))
        if name in names:
            raise ValueError(f"{folder} has two folders with the name {name!r}")
        names[name] = entry.path
    expected = classes or training or tuple(names)
    if classes is None and (unknown := sorted(set(names) - set(expected))):
        raise ValueError(f"{folder} has the folders {unknown}, which are not training classes")
    files, labels, empty = Paths(), [], []
    for label, name in enumerate(expected):
        present = files_below(names[name], notes) if name in names else []
        files.extend(present)
        labels += [label] * len(present)
        if not present:
            empty.append(name)
    if not files:
        raise ValueError(_no_images(folder, names))
    if len(expected) < 2 and reading.to_learn:
        inner = f", or {folder / expected[0]} as data" if _has_folders(folder / expected[0]) else ""
        raise ValueError(f"{folder} has one class, {expected[0]!r}; expected at least two{inner}")
    if empty and training is None and reading.to_learn:
        more = f" (class folders are {listed([*expected])})" if classes is None else ""
        raise ValueError(f"{folder} has no images for the classes {empty}{more}")
    if empty:
        warnings.warn(f"{folder} has no images for the classes {empty}", stacklevel=4)
    notes.warn(folder)
    return image_files(files, labels, expected, reading, str(folder))


def _no_images(folder: Path, names: Mapping[str, str]) -> str:
    loose = [e.name for e in entries_of(folder) if Path(e.name).suffix.lower() in IMAGE_SUFFIXES]
    text = f"{folder} has no images in class folders; expected CLASS/IMAGE.jpg"
    if (folder / "recipe.json").is_file():
        text = f"{folder} is the folder of a run; expected the images"
    elif loose:
        text += f" (it has {len(loose):,} images itself: put those of each class into a folder, or "
        text += "pass a CSV file of image,label as data)"
    return text


def image_files(
    files: Sequence[Path],
    labels: Sequence[int],
    classes: tuple[str, ...],
    reading: Reading,
    source: str,
) -> ImageSet:
    """A set of image files; small images of one size are decoded now and kept in memory."""
    numbers = torch.tensor(labels, dtype=torch.int64)
    images = ImageFiles(files, numbers, classes, reading.channels, reading.background)
    return decoded_if_small(images, reading, source)


def decoded_if_small(images: EncodedImages, reading: Reading, source: str) -> ImageSet:
    """The images in memory, if they are small, of one size and not too many; else as they are."""
    count = len(images)
    sample = torch.randperm(count, generator=generator_for(0))[:_HEADS].sort().values
    heads, _ = _read_all(_image_size, [images.source(i) for i in sample.tolist()], source, reading)
    sizes = {size for size in heads if size is not None}
    if len(sizes) != 1 or max(size := sizes.pop()) > SMALL_IMAGE:
        return images
    if count * images.channels * math.prod(size) > MOST_IN_MEMORY:
        return images
    pixels = torch.empty(0)

    def read(index: int) -> bool:
        """Whether an image is like the first that can be read."""
        nonlocal pixels
        image = images.image(index)
        if pixels.ndim != 4:
            pixels = torch.empty((count, *image.shape), dtype=image.dtype)
        alike = pixels.shape[1:] == image.shape and pixels.dtype == image.dtype
        if alike:
            pixels[index] = image
        return alike

    alike, bad = _read_all(read, range(count), source, reading)
    # EXIF may have turned some, and heads of others were not read.
    if False in alike or pixels.dtype != torch.uint8:
        return images
    for problem in bad:
        warnings.warn(f"{problem}; it is left out", stacklevel=6)
    kept = torch.tensor([image is not None for image in alike])
    if bad:
        pixels = pixels[kept]
    return ImageTensors(pixels, images.labels[kept], images.classes)


def _image_size(file: Path | FilePart) -> tuple[int, int]:
    """Width and height, from the file's header."""
    with open_image(file) as image:
        return image.size


def _read_all(
    read: Callable[[Any], Any], items: Sequence[Any], source: str, reading: Reading
) -> tuple[list[Any], list[str]]:
    """``read`` of each item, None where it fails; and the errors.

    Unless bad images are skipped, one error names all files that cannot be read.
    """
    results: list[Any] = []
    # In one thread: two take a third longer for 60,000 images of 32x32 pixels.
    bar = progress_bar(items, f"reading {printable(source)}", disable=None, leave=False)
    for item in bar:
        interrupts.check()
        try:
            results.append(read(item))
        except ImageError as error:
            results.append(error)
    problems = [str(result) for result in results if isinstance(result, ImageError)]
    if problems and reading.on_bad_image == "stop":
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ImageError("; ".join(problems[:10]) + more)
    check_bad_images(problems, len(items), reading.bad_image_limit)
    return [None if isinstance(result, ImageError) else result for result in results], problems


def check_bad_images(problems: Sequence[str], total: int, limit: float) -> None:
    """Raises an ``ImageError`` if more than the fraction ``limit`` of the images are bad.

    Unless it is 0, one bad image is allowed, however small the part.
    """
    if len(problems) > (max(1.0, limit * total) if limit else 0):
        more = f"; and {len(problems) - 10:,} more" if len(problems) > 10 else ""
        raise ImageError(
            f"{len(problems):,} of {total:,} images cannot be read, which is more than "
            f"bad_image_limit, {limit}, allows: {'; '.join(problems[:10])}{more}"
        )
