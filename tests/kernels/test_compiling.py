"""The promises of the cache of kernels: its files harm nobody, and nothing breaks a computation."""

import errno
import hashlib
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pytest
import torch

from alexnet_lib import LocalResponseNorm
from alexnet_lib.kernels import compiling
from alexnet_lib.kernels import cpu as kernels

GCC = shutil.which("gcc")
pytestmark = pytest.mark.skipif(GCC is None, reason="needs gcc")

PREFIX = "kernels-test-"
# Optimising takes most of the time of compiling. The last of such flags counts.
QUICKLY = (*compiling._FLAGS, "-O0")

COMPILES = f"""
from alexnet_lib.kernels import compiling
print(compiling.library({PREFIX!r})._name)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The cache folder, which does not exist yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv(compiling.SWITCH, raising=False)
    monkeypatch.setattr(compiling, "_FLAGS", QUICKLY)
    forget()
    yield tmp_path / "caches" / "alexnet-lib"
    forget()


def forget():
    kernels._file_prefix.cache_clear()
    kernels._library.cache_clear()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The bytes of the compiled library, for tests that need not compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiling, "_FLAGS", QUICKLY)
        return compiling._compiled(tmp_path_factory.mktemp("compiled"))


@pytest.fixture
def kept(folder, compiled):
    """A sound file in the cache folder."""
    folder.mkdir(parents=True, mode=0o700)
    return compiling._written(folder, PREFIX, compiled)


@pytest.fixture
def quick(monkeypatch, compiled):
    """Compiling takes no time; the list counts how often it was done."""
    times = []
    monkeypatch.setattr(compiling, "_compiled", lambda folder: times.append(folder) or compiled)
    monkeypatch.setattr(compiling, "_try", lambda file: None)
    return times


def compiler(folder, lines):
    """The command of a compiler that is a shell script."""
    file = folder / "a compiler"
    file.write_text(f"#!/bin/sh\n{lines}\n")
    file.chmod(0o700)
    return shlex.quote(str(file))


# A file of the cache is whole, or it is not loaded


def test_what_was_compiled_is_kept_as_one_file_that_only_its_owner_can_write(folder, quick):
    before = os.umask(0)
    try:
        first = compiling.library(PREFIX)
    finally:
        os.umask(before)
    (file,) = folder.iterdir()
    assert first._name == str(file)
    assert not (folder.stat().st_mode | file.stat().st_mode) & 0o022
    assert compiling.library(PREFIX)._name == str(file)
    assert len(quick) == 1


@pytest.mark.parametrize("seed", range(20))
def test_a_cut_or_changed_file_is_never_loaded(kept, monkeypatch, seed):
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("loaded"))
    content, chance = kept.read_bytes(), random.Random(seed)
    place = chance.randrange(len(content))
    changed = bytearray(content)
    changed[place] ^= 1 << chance.randrange(8)
    for damaged in (content[:place], bytes(changed), content + b"\0", b""):
        kept.write_bytes(damaged)
        with pytest.raises(OSError, match="damaged"):
            compiling._load(kept)


def test_a_damaged_file_is_replaced_without_a_word(kept, quick):
    content = kept.read_bytes()
    kept.write_bytes(content[:5000])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiling.library(PREFIX)._name == str(kept)
    assert kept.read_bytes() == content
    assert list(kept.parent.iterdir()) == [kept]


def test_what_processes_left_that_were_killed_is_cleared_by_the_next_that_compiles(kept, quick):
    folder = kept.parent
    kept.rename(folder / f"{PREFIX}0.so")
    (folder / ".new-1234").write_bytes(b"half")
    other = folder / "kernels-other.so"
    other.touch()
    compiling.library(PREFIX)
    assert set(folder.iterdir()) == {kept, other}


def test_a_file_that_is_replaced_while_it_is_loaded_is_not_mistaken(kept, monkeypatch):
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    real = compiling._check_owner

    def exchange(path, status, is_kind):
        real(path, status, is_kind)
        other = kept.with_suffix(".tmp")
        other.write_bytes(b"something else")
        os.replace(other, kept)

    monkeypatch.setattr(compiling, "_check_owner", exchange)
    assert compiling._load(kept).lrn


# It belongs to the user


def planted(folder, tmp_path):
    """A library under the right name that leaves a mark when it is loaded."""
    mark, source, library = tmp_path / "mark", tmp_path / "evil.c", tmp_path / "evil.so"
    source.write_text(
        "#include <stdio.h>\n__attribute__((constructor)) void load(void) "
        f'{{ FILE *f = fopen("{mark}", "w"); fclose(f); }}\n'
    )
    subprocess.run([GCC, "-shared", "-fPIC", source, "-o", library], check=True)
    content = library.read_bytes()
    file = folder / f"{PREFIX}{hashlib.sha256(content).hexdigest()}.so"
    file.write_bytes(content)
    file.chmod(0o600)
    return file, mark


def loosen_folder(folder, file):
    folder.chmod(0o777)


def loosen_folder_for_the_group(folder, file):
    folder.chmod(0o720)


def loosen_file(folder, file):
    file.chmod(0o666)


def give_away_folder(folder, file):
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(folder, 12345, -1)


def give_away_file(folder, file):
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(file, 12345, -1)


def link_folder(folder, file):
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(folder.with_name("elsewhere"))


def link_file(folder, file):
    other = folder.parent / "elsewhere.so"
    file.rename(other)
    file.symlink_to(other)


def make_pipe(folder, file):
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize(
    "spoil",
    [
        loosen_folder,
        loosen_folder_for_the_group,
        loosen_file,
        give_away_folder,
        give_away_file,
        link_folder,
        link_file,
        make_pipe,
    ],
    ids=lambda spoil: spoil.__name__,
)
def test_what_somebody_else_can_have_written_is_not_loaded(folder, tmp_path, quick, spoil):
    folder.mkdir(parents=True, mode=0o700)
    file, mark = planted(folder, tmp_path)
    spoil(folder, file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiling.library(PREFIX).lrn
    assert not mark.exists()
    assert len(quick) == 1


def test_a_folder_below_one_that_all_may_write_is_fine(tmp_path, monkeypatch, quick):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared))
    assert Path(compiling.library(PREFIX)._name).parent == shared / "alexnet-lib"


@pytest.mark.parametrize("relative", ["caches", ".", "../caches", "~/caches", ""])
def test_a_relative_cache_folder_is_ignored(tmp_path, monkeypatch, relative):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", relative)
    assert compiling._cache_folder().is_relative_to(tmp_path)
    monkeypatch.setenv("HOME", "home")
    assert compiling._cache_folder() is None


# Where the folder cannot be used


def assert_compiled_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiling.library(PREFIX).lrn


def test_where_the_cache_cannot_be_written_each_process_compiles(folder, quick):
    folder.parent.mkdir()
    folder.touch()
    assert_compiled_without_a_word()
    assert_compiled_without_a_word()
    assert len(quick) == 2


def test_a_user_without_a_home_has_kernels_too(monkeypatch, quick):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(compiling.Path, "home", no_home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert_compiled_without_a_word()


@pytest.mark.parametrize("refused", ["chmod", "fchmod", "fsync", "link", "symlink", "utime"])
def test_a_file_system_without_rights_and_flushing_keeps_kernels(
    folder, monkeypatch, quick, refused
):
    def refuse(*arguments, **options):
        raise OSError(errno.EPERM, "not supported")

    monkeypatch.setattr(os, refused, refuse)
    assert_compiled_without_a_word()
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("refused", ["mkstemp", "replace", "flock", "load", "lock folder"])
def test_a_full_or_poor_file_system_is_done_without(folder, monkeypatch, quick, refused):
    def refuse(real, *arguments, **options):
        if str(folder) in repr((arguments, options)) or refused == "flock":
            raise OSError(errno.ENOSPC, "no space")
        return real(*arguments, **options)

    place, name = {
        "mkstemp": (tempfile, "mkstemp"),
        "replace": (os, "replace"),
        "flock": (pytest.importorskip("fcntl"), "flock"),
        "load": (compiling, "_try"),  # mounted so that no programs can be run
        "lock folder": (compiling, "_turn"),
    }[refused]
    real = getattr(place, name)
    monkeypatch.setattr(place, name, lambda *a, **k: refuse(real, *a, **k))
    assert_compiled_without_a_word()
    assert len(list(folder.iterdir())) == (refused in {"flock", "lock folder"})


# Several processes


def start(script=COMPILES, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def processes_that_compile_at_once(number, folder, tmp_path):
    """How many of them have compiled, and how many files were loaded. All have succeeded."""
    counting = compiler(tmp_path, f'echo >> {tmp_path}/times\nexec {GCC} "$@" -O0')
    started = [start(CC=counting) for _ in range(number)]
    results = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0] * number, results
    assert {errors for _, errors in results} == {""}
    (file,) = folder.iterdir()
    compiling._load(file)
    loaded = {name.strip() for name, _ in results}
    assert str(file) in loaded
    return (tmp_path / "times").read_text().count("\n"), len(loaded)


def test_of_six_processes_that_start_at_once_one_compiles(folder, tmp_path):
    assert processes_that_compile_at_once(6, folder, tmp_path) == (1, 1)


@pytest.mark.slow  # 20 processes on two cores
def test_of_twenty_processes_that_start_at_once_one_compiles(folder, tmp_path):
    assert processes_that_compile_at_once(20, folder, tmp_path) == (1, 1)


@pytest.mark.slow  # 20 processes on two cores, which all compile
def test_twenty_processes_compile_at_once_where_there_are_no_locks(folder, tmp_path, monkeypatch):
    (tmp_path / "fcntl.py").write_text(
        "LOCK_EX = LOCK_NB = LOCK_UN = 0\ndef flock(*arguments): raise OSError('no locks')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert processes_that_compile_at_once(20, folder, tmp_path)[0] > 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_is_ended_while_it_compiles_harms_no_other(folder, tmp_path, number):
    slow = tmp_path / "slow"
    slow.touch()
    command = compiler(
        tmp_path,
        f'if [ -e {slow} ]; then echo $$ > {tmp_path}/pid; exec sleep 100; fi\nexec {GCC} "$@" -O0',
    )
    first = start(CC=command, TMPDIR=str(tmp_path))
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        time.sleep(0.01)
    compiler_id = int((tmp_path / "pid").read_text())
    time.sleep(0.2)  # until Popen has returned in the process: before, it knows of no compiler
    first.send_signal(number)
    first.communicate(timeout=30)
    if number == signal.SIGKILL:
        os.kill(compiler_id, signal.SIGKILL)
    else:  # the compiler ends with the process
        with pytest.raises(ProcessLookupError):
            os.kill(compiler_id, 0)
    slow.unlink()
    (folder / ".new-1234").write_bytes(b"what it may have left")
    second = start(CC=command)
    name, errors = second.communicate(timeout=60)
    assert (second.returncode, errors) == (0, "")
    assert [str(file) for file in folder.iterdir()] == [name.strip()]


def test_nobody_waits_longer_for_another_process_than_compiling_may_take(
    folder, monkeypatch, quick
):
    monkeypatch.setattr(compiling, "_TIMEOUT", 0.2)
    folder.mkdir(parents=True, mode=0o700)
    with compiling._turn(folder):
        assert_compiled_without_a_word()


# Compilers that are none


def warning_of(command, monkeypatch):
    """The one warning where ``CC`` is a command; the result is torch's."""
    monkeypatch.setenv("CC", command)
    forget()
    x = torch.linspace(-1, 1, 480).reshape(2, 12, 4, 5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert kernels.load() is kernels.load() is None
        result = LocalResponseNorm()(x)
    assert [warning.category for warning in caught] == [RuntimeWarning]
    torch.testing.assert_close(result, torch.nn.LocalResponseNorm(5, k=2.0)(x))
    return str(caught[0].message)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "value", ['""', "''", '"', "'gcc", "\\", "/", "no-such-program -O1", "\udcff"]
)
def test_a_variable_that_names_no_program_is_named(folder, monkeypatch, value):
    assert f"CC is {value!r}; expected the command of a C compiler" in warning_of(
        value, monkeypatch
    )


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("exit 3", "ended with 3"),
        ("kill -9 $$", "ended with -9"),
        ("exit 0", "wrote no library"),
        (
            "printf '\\377\\033[31m\\000' >&2; exit 1",
            "ended with 1: \N{REPLACEMENT CHARACTER}?[31m?",
        ),
        ("exec sleep 100", "did not end in"),
        ("sleep 100 & wait", "did not end in"),
        ("exec yes", "prints without end"),
        ("exec yes >&2", "prints without end"),
        ("exec cat", "wrote no library"),
        ('for o; do :; done; printf garbage > "$PWD/x"; exit 1', "ended with 1"),
    ],
)
def test_a_program_that_is_no_compiler_is_one_warning(
    folder, tmp_path, monkeypatch, lines, expected
):
    if "sleep" in lines:
        monkeypatch.setattr(compiling, "_TIMEOUT", 0.3)
    monkeypatch.chdir(tmp_path)
    assert expected in warning_of(compiler(tmp_path, lines), monkeypatch)


def test_what_a_compiler_has_started_ends_with_it(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "_TIMEOUT", 0.3)
    command = compiler(tmp_path, f"(sleep 1; touch {tmp_path}/mark) & wait")
    assert "did not end in" in warning_of(command, monkeypatch)
    time.sleep(1)
    assert not (tmp_path / "mark").exists()


WRITES = """while [ "$1" != -o ]; do shift; done
{}"""


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ('echo garbage > "$2"', "invalid ELF header|file too short|cannot|could not"),
        (': > "$2"', "file too short|could not"),
        ('mkdir "$2"', "wrote no library"),
        (f'{GCC} -shared -fPIC crash.c -o "$2"', "the compiled code crashes"),
        (f'{GCC} -shared -fPIC loop.c -o "$2"', "did not end in"),
        (f'{GCC} -shared -fPIC none.c -o "$2"', "undefined symbol|crashes"),
        (f'{GCC} -shared -fPIC none.c -o all && head -c 9000 all > "$2"', "could not compile"),
    ],
)
def test_what_is_no_library_or_crashes_is_one_warning_and_is_not_kept(
    folder, tmp_path, monkeypatch, lines, expected
):
    monkeypatch.chdir(tmp_path)
    Path("crash.c").write_text("#include <stdlib.h>\nvoid lrn(void *a) { abort(); }\n")
    Path("loop.c").write_text("void lrn(void *a) { for (;;); }\n")
    Path("none.c").write_text("int nothing;\n")
    monkeypatch.setattr(compiling, "_TIMEOUT", 2.0 if "loop.c" in lines else 60.0)
    message = warning_of(compiler(tmp_path, WRITES.format(lines)), monkeypatch)
    assert any(part in message for part in expected.split("|"))
    assert not list(folder.iterdir())


def test_code_for_a_sanitizer_that_ends_the_process_is_not_loaded(folder, monkeypatch):
    if subprocess.run(
        [GCC, "-print-file-name=libasan.so"], capture_output=True, check=True
    ).stdout == (b"libasan.so\n"):
        pytest.skip("this gcc has no address sanitizer")
    assert "crashes" in warning_of(f"{GCC} -fsanitize=address", monkeypatch)


@pytest.mark.parametrize("value", ["", "  ", f"{GCC} -O1", f"'{GCC}'"])
def test_a_variable_that_is_empty_or_has_options_compiles(folder, monkeypatch, value):
    monkeypatch.setenv("CC", value)
    forget()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernels.load() is not None


@pytest.mark.bad_input
def test_nothing_of_this_happens_when_the_library_is_imported():
    script = "import alexnet_lib, sys; sys.exit('alexnet_lib.kernels' in sys.modules)"
    environment = {**os.environ, "CC": '"', compiling.SWITCH: "perhaps", "XDG_CACHE_HOME": "x"}
    subprocess.run([sys.executable, "-W", "error", "-c", script], env=environment, check=True)


@pytest.mark.bad_input
def test_without_a_temporary_folder_torch_computes(folder, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/folder")
    assert "/no/such/folder" in warning_of("gcc", monkeypatch)


@pytest.mark.bad_input
def test_a_temporary_folder_that_cannot_hold_programs_is_no_hindrance(folder, monkeypatch, quick):
    monkeypatch.setattr(
        compiling, "_try", lambda file: None if file.is_relative_to(folder) else os.stat("/none")
    )
    assert_compiled_without_a_word()


def test_a_program_that_has_a_python_built_in_needs_no_trial(folder, monkeypatch, kept):
    for program in ("", "/bin/false", shutil.which("echo")):
        monkeypatch.setattr(sys, "executable", program)
        compiling._try(kept)
