"""The promises of the files that are written: whole, on disk, and in a folder that holds no run."""

import json
import os
import re
import stat
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from alexnet_lib.files import (
    RunFolder,
    append_json_line,
    as_path,
    as_text,
    replacing,
    write_json,
)

WRITERS = {
    "write_json": (write_json, '{\n  "b": 2\n}\n'),
    "append_json_line": (append_json_line, '{"a": 1}\n{"b": 2}\n'),
}


@pytest.fixture(params=WRITERS)
def writer(request):
    """A function that writes ``{"b": 2}``, and what a file with ``{"a": 1}`` then holds."""
    return WRITERS[request.param]


@pytest.fixture
def file(tmp_path) -> Path:
    file = tmp_path / "file.json"
    file.write_text('{"a": 1}\n')
    return file


def test_a_file_is_replaced_by_what_was_written(tmp_path):
    file = tmp_path / "new" / "folder" / "file.txt"
    for text in ("one", "two"):
        with replacing(file) as new:
            new.write_text(text)
        assert file.read_text() == text
    assert [*file.parent.iterdir()] == [file]


def test_until_all_is_written_the_old_file_is_found(file):
    with replacing(file) as new:
        new.write_text("half")
        assert file.read_text() == '{"a": 1}\n'
    assert file.read_text() == "half"


def test_an_error_leaves_the_old_file_and_nothing_else(file):
    def fail():
        with replacing(file) as new:
            new.write_text("half")
            raise RuntimeError("no luck today")

    with pytest.raises(RuntimeError, match="no luck today"):
        fail()
    assert file.read_text() == '{"a": 1}\n'
    assert [*file.parent.iterdir()] == [file]


def test_a_process_that_is_killed_while_it_writes_leaves_the_old_file(file):
    script = (
        "import os, sys; from pathlib import Path; from alexnet_lib.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as new:\n"
        "    new.write_text('half')\n"
        "    os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, file], check=False).returncode == 9
    assert file.read_text() == '{"a": 1}\n'


@pytest.mark.skipif(os.name != "posix", reason="other systems have other rights")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_file_has_the_rights_that_the_mask_allows(mask, tmp_path):
    file = tmp_path / "file"
    old = os.umask(mask)
    try:
        with replacing(file) as new:
            new.unlink()
            new.touch(mode=0o600)  # as some writers create theirs
    finally:
        os.umask(old)
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~mask


def test_json_is_written_as_plain_data(tmp_path):
    data = {"name": "é", "numbers": [1, 2.5, None], "nested": {"yes": True}}
    write_json(tmp_path / "file.json", data)
    assert json.loads((tmp_path / "file.json").read_text(encoding="utf-8")) == data


def test_lines_are_appended_one_by_one(tmp_path):
    file = tmp_path / "file.jsonl"
    for i in range(3):
        append_json_line(file, {"i": i})
        assert file.read_text() == "".join(f'{{"i": {j}}}\n' for j in range(i + 1))


def test_what_is_written_is_flushed_to_disk_before_it_is_found(writer, file, monkeypatch):
    write, expected = writer
    seen = []

    def flush(number):
        seen.append((os.fstat(number).st_ino, os.fstat(number).st_size, file.read_text()))

    monkeypatch.setattr(os, "fsync", flush)
    write(file, {"b": 2})
    assert file.read_text() == expected
    # That very file, with all of its bytes, while a reader still found the old one.
    assert seen == [(file.stat().st_ino, len(expected), '{"a": 1}\n')]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_crash_at_the_last_moment_leaves_the_old_file(function, writer, file, monkeypatch):
    def crash(*arguments):
        raise RuntimeError("the power went")

    monkeypatch.setattr(os, function, crash)
    with pytest.raises(RuntimeError, match="the power went"):
        writer[0](file, {"b": 2})
    assert file.read_text() == '{"a": 1}\n'
    assert [*file.parent.iterdir()] == [file]


@pytest.mark.bad_input
def test_data_that_are_not_json_leave_the_old_file(writer, file):
    with pytest.raises(TypeError):
        writer[0](file, {"b": object()})
    assert file.read_text() == '{"a": 1}\n'


# The folder of a run


def test_a_run_folder_is_created_and_knows_its_files(tmp_path):
    folder = RunFolder(str(tmp_path / "runs" / "one"))
    assert folder.path == tmp_path / "runs" / "one"
    assert folder.path.is_dir()
    files = (folder.recipe, folder.history, folder.best, folder.last, folder.result)
    assert files == tuple(folder.path / name for name in RunFolder.FILES)
    assert not list(folder.path.iterdir())


def test_a_run_folder_may_hold_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    RunFolder(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_that_holds_a_run_is_refused(tmp_path):
    (tmp_path / "recipe.json").write_text("{}")
    message = f"out is {str(tmp_path)!r}, which holds a run already; choose another folder"
    with pytest.raises(FileExistsError, match=f"^{re.escape(message)}$"):
        RunFolder(tmp_path)


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_folder_that_cannot_be_written_is_refused(name, tmp_path):
    (tmp_path / "file").write_text("")
    message = f"out is {str(tmp_path / name)!r}, which cannot be written: "
    with pytest.raises(OSError, match=f"^{re.escape(message)}"):
        RunFolder(tmp_path / name)


def test_the_disk_must_have_space_for_three_checkpoints(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(10**9, 0, 30_000_000))
    folder = RunFolder(tmp_path)
    folder.check_space(10_000_000)
    message = f"out is {str(tmp_path)!r}, where 30 MB are free; the checkpoints need 33 MB"
    with pytest.raises(OSError, match=f"^{re.escape(message)}$"):
        folder.check_space(11_000_000)


# Paths


class Own:
    """A path of a user's own class."""

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return self.path


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("kind", [str, Path, Own, os.fsencode, lambda path: Own(os.fsencode(path))])
def test_a_path_is_whatever_the_system_takes_for_one(kind, home):
    assert as_path(kind("a/b")) == Path("a/b")
    assert as_path(kind("~")) == home
    assert as_path(kind("~/a/~")) == home / "a" / "~"
    assert as_path(kind("a/~")) == Path("a/~")
    assert as_path(kind("a~")) == Path("a~")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("value", "kind"), [(3, "int"), (None, "NoneType"), ([], "list"), (Own(3), f"{__name__}.Own")]
)
def test_what_is_no_path_is_named_with_its_type(value, kind):
    with pytest.raises(TypeError, match=f"^{re.escape(f'out is a {kind}; expected a path')}$"):
        as_path(value, "out")


@pytest.mark.bad_input
@pytest.mark.parametrize("kind", [str, Path, os.fsencode])
def test_a_home_folder_that_does_not_exist_is_named(kind):
    text = "data is '~nobody-of-this-name', but there is no such home folder"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        as_path(kind("~nobody-of-this-name"), "data")


def test_a_run_folder_may_be_below_the_home_folder(home):
    folder = RunFolder("~/runs/one")
    assert folder.recipe == home / "runs" / "one" / "recipe.json"
    assert folder.path.is_dir()


@pytest.mark.parametrize("name", ["", "dog", "café", "猫"])
def test_a_name_that_was_decoded_stays_as_it_is(name):
    assert as_text(name) == name


@pytest.mark.skipif(os.name != "posix", reason="elsewhere names are Unicode")
def test_a_name_that_the_locale_cannot_decode_is_utf_8():
    code = (
        "import os, sys; from alexnet_lib.files import as_text; "
        "print(ascii([as_text(name) for name in sys.argv[1:]]))"
    )
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", code, "café".encode(), b"caf\xe9"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=plain)
    assert done.stdout == "['caf\\xe9', 'caf\\udce9']\n"
