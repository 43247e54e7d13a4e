"""The promises of the files that are written: whole, on disk, and in a folder that holds no run."""

import errno
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections import namedtuple
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from alexnet_lib import files
from alexnet_lib.files import (
    Lock,
    RunFolder,
    as_path,
    as_text,
    read_tensors,
    replacing,
    write_json,
    write_json_lines,
    write_tensors,
)

WRITERS = {
    "write_json": (write_json, '{\n  "b": 2\n}\n'),
    "write_json_lines": (lambda file, value: write_json_lines(file, [value]), '{"b": 2}\n'),
}


@pytest.fixture(params=WRITERS)
def writer(request):
    """A function that writes ``{"b": 2}``, and what a file then holds."""
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


def test_what_is_written_is_flushed_to_disk_before_it_is_found(writer, file, monkeypatch):
    write, expected = writer
    seen = []

    def flush(number):
        seen.append((os.fstat(number).st_ino, os.fstat(number).st_size, file.read_text()))

    monkeypatch.setattr(os, "fsync", flush)
    write(file, {"b": 2})
    assert file.read_text() == expected
    # That very file, with all of its bytes, while a reader still found the old one; then its name.
    assert seen[0] == (file.stat().st_ino, len(expected), '{"a": 1}\n')
    assert [(number, text) for number, _, text in seen[1:]] == [
        (file.parent.stat().st_ino, expected)
    ]


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


@pytest.mark.parametrize("function", ["fsync", "chmod"])
def test_a_file_system_that_cannot_do_it_is_written_to(function, writer, file, monkeypatch):
    def refuse(*arguments, **named):
        raise OSError(errno.EINVAL if function == "fsync" else errno.EPERM, "not here")

    monkeypatch.setattr(os, function, refuse)
    writer[0](file, {"b": 2})
    assert file.read_text() == writer[1]


@pytest.mark.bad_input
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_an_error_of_the_disk_names_the_file(function, number, writer, file, monkeypatch):
    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match=re.escape(f"{os.strerror(number)}: {str(file)!r}")) as raised:
        writer[0](file, {"b": 2})
    assert raised.value.errno == number
    assert file.read_text() == '{"a": 1}\n'


@pytest.mark.skipif(os.name != "posix", reason="other systems have other limits")
@pytest.mark.bad_input
def test_a_disk_that_is_full_in_the_middle_of_a_file_leaves_the_old_one(file):
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from alexnet_lib.files import write_json\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "write_json(Path(sys.argv[1]), {'b': 'x' * 1000})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, file], check=False, capture_output=True, text=True
    )
    assert f"OSError: [Errno {errno.EFBIG}] File too large: {str(file)!r}" in done.stderr
    assert file.read_text() == '{"a": 1}\n'
    assert [*file.parent.iterdir()] == [file]


def test_what_a_killed_process_left_is_removed_by_the_next_one_that_writes_the_file(file):
    other = file.parent / ".other.json-abc.tmp"
    other.mkdir()
    script = (
        "import os, sys; from pathlib import Path; from alexnet_lib.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as new:\n"
        "    new.write_text('half')\n"
        "    os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", script, file], check=False)
    assert len([*file.parent.iterdir()]) == 3
    with replacing(file) as new:
        new.write_text("whole")
    assert {*file.parent.iterdir()} == {file, other}


def test_what_another_writer_is_writing_is_left_alone(file):
    with replacing(file) as one:
        one.write_text("one")
        with replacing(file) as other:
            other.write_text("other")
        assert file.read_text() == "other"
        assert one.read_text() == "one"
    assert file.read_text() == "one"


@pytest.mark.skipif(os.name != "posix", reason="other systems have other links")
def test_links_that_somebody_left_are_not_followed(file, tmp_path):
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "gold").write_text("gold")
    (file.parent / f".{file.name}-abc.tmp").symlink_to(treasure)
    file.unlink()
    file.symlink_to(treasure / "gold")
    with replacing(file) as new:
        new.write_text("mine")
    assert (treasure / "gold").read_text() == "gold"
    assert not file.is_symlink()
    (tmp_path / "lock").symlink_to(treasure / "gold")
    with pytest.raises(OSError, match="lock"), Lock(tmp_path / "lock"):
        pass


def test_windows_has_no_folders_to_flush(file, monkeypatch):
    monkeypatch.setattr(files.sys, "platform", "win32")
    monkeypatch.setattr(os, "open", lambda *arguments: pytest.fail("it cannot open folders"))
    files.flush(file.parent)


# Locks


def held_elsewhere(lock: Path) -> bool:
    """Whether another process finds the lock held."""
    script = (
        "import sys; from pathlib import Path; from alexnet_lib.files import Lock\n"
        "with Lock(Path(sys.argv[1])): pass\n"
    )
    done = subprocess.run([sys.executable, "-c", script, lock], check=False, capture_output=True)
    assert done.returncode == 0 or b"BlockingIOError" in done.stderr
    return done.returncode != 0


def test_a_lock_is_held_once(tmp_path):
    lock = tmp_path / "lock"
    with Lock(lock):
        with pytest.raises(BlockingIOError, match=re.escape(str(lock))), Lock(lock):
            pass
        with pytest.raises(BlockingIOError), Lock(tmp_path / "." / "lock"):
            pass
        assert held_elsewhere(lock)
    assert not lock.exists()
    assert not held_elsewhere(lock)


def test_a_lock_ends_with_its_process(tmp_path):
    lock = tmp_path / "lock"
    script = (
        "import os, sys; from pathlib import Path; from alexnet_lib.files import Lock\n"
        "with Lock(Path(sys.argv[1])): os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", script, lock], check=False)
    assert lock.exists()
    with Lock(lock):
        assert held_elsewhere(lock)


@pytest.mark.skipif(os.name != "posix", reason="other systems do not fork")
def test_a_child_process_does_not_keep_the_lock(tmp_path):
    lock = tmp_path / "lock"
    with Lock(lock):
        child = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False
        )
    try:
        assert not held_elsewhere(lock)
    finally:
        child.communicate(b"\n")


def test_where_the_file_system_has_no_locks_the_process_has_them(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(files.fcntl, "lockf", refuse)
    with Lock(tmp_path / "lock"), pytest.raises(BlockingIOError), Lock(tmp_path / "lock"):
        pass


def test_on_windows_a_byte_of_the_file_is_locked(tmp_path, monkeypatch):
    calls: list[tuple[int, int]] = []
    windows = SimpleNamespace(
        LK_NBLCK=2, locking=lambda _, mode, count: calls.append((mode, count))
    )
    monkeypatch.setattr(files, "msvcrt", windows, raising=False)
    monkeypatch.setattr(files.sys, "platform", "win32")
    with Lock(tmp_path / "lock"):
        assert calls == [(2, 1)]


# Tensors


TENSORS = {
    "weights": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "number": torch.tensor(7),
    "none": torch.empty(0),
    "sha256": torch.zeros(2),
}
METADATA = {"alexnet_lib": '{"sha256":"' + "0" * 64 + '"}'}


@pytest.fixture
def tensors_file(tmp_path) -> Path:
    file = tmp_path / "tensors.safetensors"
    write_tensors(file, TENSORS, METADATA)
    return file


def test_tensors_are_read_as_they_were_written(tensors_file):
    tensors, metadata = read_tensors(tensors_file)
    assert metadata == METADATA
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_tensors_in_any_memory_format_are_written(tmp_path):
    images = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    write_tensors(tmp_path / "file.safetensors", {"images": images}, {})
    assert torch.equal(read_tensors(tmp_path / "file.safetensors")[0]["images"], images)


def test_others_read_the_file_too(tensors_file):
    assert torch.equal(load_file(tensors_file)["weights"], TENSORS["weights"])


@pytest.mark.bad_input
def test_every_flipped_bit_and_every_cut_is_detected(tensors_file):
    content = tensors_file.read_bytes()
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        tensors_file.write_bytes(flipped)
        with pytest.raises(ValueError, match=re.escape(str(tensors_file))):
            read_tensors(tensors_file)
    for length in range(len(content)):
        tensors_file.write_bytes(content[:length])
        with pytest.raises(ValueError, match=re.escape(str(tensors_file))):
            read_tensors(tensors_file)
    tensors_file.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match=re.escape(str(tensors_file))):
        read_tensors(tensors_file)


def test_a_file_without_a_checksum_is_read_with_a_warning(tmp_path):
    file = tmp_path / "older.safetensors"
    save_file(TENSORS, file, {"format": "pt"})
    with pytest.warns(UserWarning, match=f"^{re.escape(str(file))} has no checksum"):
        assert read_tensors(file)[1] == {"format": "pt"}


@pytest.mark.bad_input
def test_bytes_that_a_disk_changes_are_noticed_before_the_old_file_is_replaced(
    tensors_file, monkeypatch
):
    before = tensors_file.read_bytes()

    def change(path):
        if path.is_file():
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)

    monkeypatch.setattr(files, "flush", change)
    with pytest.raises(OSError, match="the disk holds other bytes than were written"):
        write_tensors(tensors_file, TENSORS, {})
    assert tensors_file.read_bytes() == before


# The folder of a run


def test_a_run_folder_is_created_and_knows_its_files(tmp_path):
    with RunFolder(str(tmp_path / "runs" / "one")) as folder:
        assert folder.path == tmp_path / "runs" / "one"
        assert folder.path.is_dir()
        names = (folder.recipe, folder.history, folder.best, folder.last, folder.result)
        assert (*names, folder.state) == tuple(folder.path / name for name in RunFolder.FILES)
        write_json(folder.recipe, {})
    assert [*folder.path.iterdir()] == [folder.recipe]


def test_a_run_folder_in_which_nothing_was_written_is_not_left(tmp_path):
    with RunFolder(tmp_path / "runs" / "one"):
        pass
    assert not (tmp_path / "runs" / "one").exists()
    with RunFolder(tmp_path):  # that was there
        pass
    assert tmp_path.exists()


def test_a_run_folder_may_hold_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with RunFolder(tmp_path):
        pass
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", RunFolder.FILES)
def test_a_folder_that_holds_a_run_is_refused_unless_it_is_resumed(name, tmp_path):
    (tmp_path / name).write_text("{}")
    message = f"out is {str(tmp_path)!r}, which holds a run already; choose another folder"
    with pytest.raises(FileExistsError, match=f"^{re.escape(message)}"), RunFolder(tmp_path):
        pass
    with RunFolder(tmp_path, resume=True) as folder:
        assert folder.holds_run
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_run_folder_belongs_to_one_run_at_a_time(tmp_path):
    message = f"out is {str(tmp_path)!r}, to which another run is writing"
    with (
        RunFolder(tmp_path),
        pytest.raises(BlockingIOError, match=re.escape(message)),
        RunFolder(tmp_path, resume=True),
    ):
        pass
    assert not [*tmp_path.iterdir()]


def test_what_killed_runs_left_in_a_folder_is_cleared(tmp_path):
    (tmp_path / ".best.safetensors-abc.tmp").mkdir()
    (tmp_path / ".best.safetensors-abc.tmp" / "best.safetensors").write_bytes(b"half")
    with RunFolder(tmp_path):
        assert {file.name for file in tmp_path.iterdir()} == {".lock"}


@pytest.mark.skipif(os.name != "posix", reason="other systems have other links")
@pytest.mark.bad_input
def test_a_link_in_place_of_a_file_of_the_run_is_refused(tmp_path):
    (tmp_path / "state.safetensors").symlink_to(tmp_path / "elsewhere")
    message = "where state.safetensors is a link; expected a file of a run"
    with pytest.raises(OSError, match=message), RunFolder(tmp_path, resume=True):
        pass


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_folder_that_cannot_be_written_is_refused(name, tmp_path):
    (tmp_path / "file").write_text("")
    message = f"out is {str(tmp_path / name)!r}, which cannot be written: "
    with pytest.raises(OSError, match=f"^{re.escape(message)}"), RunFolder(tmp_path / name):
        pass


def test_a_folder_that_was_removed_or_replaced_is_noticed(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder:
        folder.check()
        shutil.rmtree(folder.path)
        message = re.escape(f"out is {str(folder.path)!r}, which was removed or replaced")
        with pytest.raises(FileNotFoundError, match=message):
            folder.check()
        folder.path.mkdir()
        with pytest.raises(FileNotFoundError, match=message):
            folder.check()


def test_the_disk_must_have_the_space_that_is_needed(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(10**9, 0, 30_000_000))
    folder = RunFolder(tmp_path)
    folder.check_space(30_000_000)
    message = f"out is {str(tmp_path)!r}, where 30 MB are free; the checkpoints need 33 MB"
    with pytest.raises(OSError, match=f"^{re.escape(message)}$"):
        folder.check_space(33_000_000)


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
    with RunFolder("~/runs/one") as folder:
        assert folder.recipe == home / "runs" / "one" / "recipe.json"
        assert folder.path.is_dir()


@pytest.mark.bad_input
@pytest.mark.parametrize("path", ["", b"", "a\0b"])
def test_what_can_be_no_path_is_refused(path):
    with pytest.raises(ValueError, match=r"^out is .*; expected a path$"):
        as_path(path, "out")


@pytest.mark.bad_input
@pytest.mark.parametrize("kind", [str, Path, PureWindowsPath, os.fsencode])
@pytest.mark.parametrize("address", ["https://example.org/a", "S3://a", "file:///home/a"])
def test_an_address_is_shown_as_it_was_written(address, kind):
    text = f"data is {address!r}, an address; expected a path: download it first"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        as_path(kind(address), "data")


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
