"""Atomic writing: a reader finds either the old file or the complete new one."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alexnet_lib.checks import type_name


def as_path(path: object, name: str = "path") -> Path:
    """The path; ``~`` is the user's home folder. ``name`` is that of the argument in errors."""
    try:
        text = os.fsdecode(path)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} is a {type_name(path)}; expected a path") from None
    try:
        return Path(text).expanduser()
    except RuntimeError:  # there is no such user
        raise ValueError(
            f"{name} is {text!r}, but there is no such home folder; expected a path without ~"
        ) from None


def as_text(name: str) -> str:
    """A name of the file system as text: UTF-8 where the locale cannot decode it (``LC_ALL=C``)."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # it has surrogates, which stand for bytes
        return os.fsencode(name).decode("utf-8", "surrogateescape")
    return name


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path to write to; when the block ends, it replaces ``file``.

    What was written is flushed to disk before it is renamed. Where the block raises, ``file`` stays
    as it was. The folder of ``file`` is created where it does not exist.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.name}-") as folder:
        new = Path(folder) / file.name
        new.touch()
        mode = new.stat().st_mode
        yield new
        # Some writers create files that only their owner may read, whatever the umask allows.
        new.chmod(mode)
        with new.open("rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(new, file)


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Writes plain data as JSON."""
    with replacing(file) as new:
        new.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def append_json_line(file: Path, value: Mapping[str, Any]) -> None:
    """Adds one line of JSON to a file, which is created where it does not exist."""
    lines = file.read_text(encoding="utf-8") if file.exists() else ""
    with replacing(file) as new:
        new.write_text(f"{lines}{json.dumps(value)}\n", encoding="utf-8")


class RunFolder:
    """The folder of a run, and the names of its files; it is created where it does not exist.

    A folder that holds a run already is a ``FileExistsError``; one that cannot be written an
    ``OSError``.
    """

    FILES = ("recipe.json", "history.jsonl", "best.safetensors", "last.safetensors", "result.json")

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = as_path(path, "out")
        self.recipe, self.history, self.best, self.last, self.result = (
            self.path / name for name in self.FILES
        )
        if self.recipe.exists():
            raise FileExistsError(
                f"out is {str(self.path)!r}, which holds a run already; choose another folder"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # A run should not fail at its first checkpoint.
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            reason = error.strerror or error
            raise OSError(
                f"out is {str(self.path)!r}, which cannot be written: {reason}"
            ) from error

    def check_space(self, checkpoint_bytes: int) -> None:
        """Raises an ``OSError`` unless the disk has space for the run's checkpoints."""
        # best, last, and the one that is being written.
        needed, free = 3 * checkpoint_bytes, shutil.disk_usage(self.path).free
        if free < needed:
            raise OSError(
                f"out is {str(self.path)!r}, where {free / 1e6:,.0f} MB are free; the checkpoints "
                f"need {needed / 1e6:,.0f} MB"
            )
