"""Paths of many files in little memory."""

import os
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from jaxtyping import Int64
from torch import Tensor


class Paths(Sequence[Path]):
    """Paths that are stored as a folder's number and the bytes of a name, and made when asked for.

    That takes 13 bytes and those of the name for each, where a ``Path`` takes some 350; and worker
    processes share it, while every object that they look at is copied for them.

    Example:
        >>> from alexnet_lib.data.paths import Paths
        >>> paths = Paths(["cat/1.jpg", "cat/2.jpg"])
        >>> len(paths), paths[1].name
        (2, '2.jpg')
    """

    def __init__(self, paths: Iterable[str | os.PathLike[str]] = ()) -> None:
        self._folders: list[str] = []
        self._numbers: dict[str, int] = {}  # of the folders
        self._names = bytearray()  # each with a zero byte behind it, which no name has
        self._folder_of, self._starts = array("i"), array("q")
        self.extend(paths)

    def extend(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        """Appends paths."""
        for path in paths:
            self.append(*os.path.split(path))

    def append(self, folder: str, name: str) -> None:
        """Appends the path of a name in a folder."""
        if (number := self._numbers.get(folder)) is None:
            number = self._numbers[folder] = len(self._folders)
            self._folders.append(folder)
        self._folder_of.append(number)
        self._starts.append(len(self._names))
        self._names += os.fsencode(name) + b"\0"

    def pair(self, index: int) -> tuple[str, str]:
        """Folder and name, as they were appended."""
        start = self._starts[index]
        name = self._names[start : self._names.index(0, start)]
        return self._folders[self._folder_of[index]], os.fsdecode(bytes(name))

    def subset(self, indices: Int64[Tensor, " n"]) -> "Paths":
        """The paths of these indices, in this order; they share the names."""
        chosen, rows = Paths(), indices.cpu().numpy()
        chosen._folders, chosen._numbers, chosen._names = self._folders, self._numbers, self._names
        for name in ("_folder_of", "_starts"):
            values = getattr(self, name)
            setattr(chosen, name, array(values.typecode, np.asarray(values)[rows].tobytes()))
        return chosen

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Path, ...]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        return Path(*self.pair(index))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # it can be extended

    def __repr__(self) -> str:
        return f"Paths({len(self):,} in {len(self._folders):,} folders)"
