"""CSV files of images and labels, as competitions hand them out."""

import csv
import errno
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alexnet_lib import interrupts
from alexnet_lib.checks import shown
from alexnet_lib.data.decoding import IMAGE_SUFFIXES
from alexnet_lib.data.folders import (
    PartNames,
    Reading,
    image_files,
    listed,
    part_folders,
)
from alexnet_lib.data.images import MAX_CLASSES, ImageSet
from alexnet_lib.text import printable

TABLE_SUFFIXES = (".csv", ".tsv")
_IMAGE_COLUMNS = (
    *("image", "file", "filename", "file_name", "filepath", "path", "img"),
    *("image_id", "image_name", "image_path", "id", "name"),
)
_LABEL_COLUMNS = ("label", "class", "category", "target", "class_name", "species", "breed")

# Some millions of images.
_MAX_BYTES = 1 << 28


def image_table(
    file: Path, reading: Reading, *, classes: tuple[str, ...] | None, parts: PartNames | None
) -> ImageSet:
    """The images of a CSV file with a header; errors are those of ``build_loaders``.

    ``parts={"train": FOLDER}`` says where the images are. Otherwise it is the folder of the CSV
    file, or the one folder in it that has the first image, the training part where several have.
    Paths of images may be absolute, or lead out of that folder: whatever they name is only opened
    as an image.
    """
    rows = _rows(file)
    names = [name for _, name, _ in rows]
    labels = [label for _, _, label in rows]
    if unlabelled := [line for line, _, label in rows if not label]:
        raise ValueError(f"{file} has no label in the lines {listed(unlabelled)}")
    by_name: dict[str, str] = {}
    for line, name, label in rows:
        if by_name.setdefault(name, label) != label:
            raise ValueError(
                f"{file}, line {line}: {printable(name)} has the label {label!r}, and "
                f"{by_name[name]!r} before"
            )
    if len(by_name) < len(rows):
        repeated = len(rows) - len(by_name)
        images = f"{repeated:,} image{'s' * (repeated > 1)}"
        raise ValueError(f"{file} names {images} twice; expected a line for each")
    present = _sorted(set(labels))
    if classes is not None and (unknown := sorted(set(present) - set(classes))):
        raise ValueError(f"{file} has the labels {listed(unknown)}, which are not in classes")
    expected = classes or tuple(present)
    if len(expected) > MAX_CLASSES:
        raise ValueError(f"{file} has {len(expected):,} labels; expected at most {MAX_CLASSES:,}")
    if len(expected) < 2 and reading.to_learn:
        raise ValueError(f"{file} has one label, {expected[0]!r}; expected at least two")
    if empty := [name for name in expected if name not in present]:
        text = f"{file} has no images for the classes {empty}"
        if reading.to_learn:
            raise ValueError(text)
        warnings.warn(text, stacklevel=4)
    folder = _folder(file, names[0], parts)
    found = []
    for name in names:
        interrupts.check()
        found.append(_find(folder, name))
    if missing := [name for name, path in zip(names, found, strict=True) if path is None]:
        raise FileNotFoundError(
            f"{file} names {len(missing):,} image{'s' * (len(missing) > 1)} not in {folder}: "
            f"{listed(missing)}"
        )
    numbers = {name: number for number, name in enumerate(expected)}
    files = [path for path in found if path is not None]
    return image_files(files, [numbers[label] for label in labels], expected, reading, str(file))


def _rows(file: Path) -> list[tuple[int, str, str]]:
    """Line, image and label of each row."""
    if not file.is_file():  # a pipe would never end
        raise FileNotFoundError(errno.ENOENT, "no such file", str(file))
    if file.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{file} has {file.stat().st_size:,} bytes; expected up to {_MAX_BYTES:,}")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8: {error}; save it in that encoding") from None
    lines = text.splitlines()
    delimiter = max(",;\t", key=lines[0].count) if lines else ","
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        return _read_rows(file, reader)
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num}: {error}; expected CSV") from None


def _read_rows(file: Path, reader: Any) -> list[tuple[int, str, str]]:
    columns = [name.strip().casefold() for name in next(reader, [])]
    image, label = (_column(columns, known) for known in (_IMAGE_COLUMNS, _LABEL_COLUMNS))
    if image is None and label is not None and len(columns) == 2:
        image = 1 - label
    if label is None and image is not None and len(columns) == 2:
        label = 1 - image
    if image is None or label is None:
        raise ValueError(
            f"{file} has the columns {shown(columns)}; expected a header with 'image' and 'label'"
        )
    rows = []
    for row in reader:
        if any(cell.strip() for cell in row):
            if len(row) != len(columns):
                raise ValueError(
                    f"{file}, line {reader.line_num}: {len(row)} columns; expected {len(columns)}"
                )
            name, text = row[image].strip(), row[label].strip()
            if not name or "\0" in name:
                raise ValueError(
                    f"{file}, line {reader.line_num}: the image is {shown(name)}; expected a path"
                )
            rows.append((reader.line_num, name, text))
    if not rows:
        raise ValueError(f"{file} has no rows; expected a line of image,label for each image")
    return rows


def _column(columns: list[str], known: Iterable[str]) -> int | None:
    return next((columns.index(name) for name in known if name in columns), None)


def _sorted(names: Iterable[str]) -> list[str]:
    """Numbers by their size, other names by the alphabet."""
    names = sorted(names)
    numbers = all(name.isdecimal() and len(name) < 20 for name in names)
    return sorted(names, key=int) if numbers else names


def _folder(file: Path, first: str, parts: PartNames | None) -> Path:
    here = file.parent
    if parts:
        return part_folders(here, parts)["train"]
    if _find(here, first) is not None:
        return here
    inside = [path for path in sorted(here.iterdir()) if path.is_dir() and _find(path, first)]
    if len(inside) > 1:
        inside = [path for path in inside if path.name.casefold() == "train"] or inside
    if len(inside) == 1:
        return inside[0]
    where = f"in several folders: {listed(inside)}" if inside else f"neither in {here} nor below"
    raise FileNotFoundError(
        f"{file}: its first image, {first!r}, is {where}; name the folder of the images with "
        "parts={'train': ...} (--part train=...)"
    )


def _find(folder: Path, name: str) -> Path | None:
    """The file of this name, which may lack its ending."""
    path = folder / name
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return path if os.path.isfile(path) else None
    endings = (".png", ".jpg", ".jpeg", *sorted(IMAGE_SUFFIXES))
    candidates = (path, *(Path(f"{path}{ending}") for ending in endings))
    return next((candidate for candidate in candidates if os.path.isfile(candidate)), None)
