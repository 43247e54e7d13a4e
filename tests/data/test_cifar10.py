"""The promises of CIFAR-10: the files' pixels, and errors that say how to get what is missing."""

import hashlib
import io
import os
import pickle
import re
import shutil
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from helpers import FakeCifar10, write_class_folders
from torchvision.datasets import CIFAR10

from alexnet_lib.data import cifar10 as cifar10_module
from alexnet_lib.data.cifar10 import CIFAR10_URL_VARIABLE, cifar10, download_cifar10, is_cifar10
from alexnet_lib.data.images import ImageTensors
from alexnet_lib.data.sources import open_parts

bad_input = pytest.mark.bad_input


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCifar10:
    return FakeCifar10(tmp_path, monkeypatch)


@pytest.fixture
def served(fake: FakeCifar10, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCifar10]:
    """The data set, with its archive at the address that the variable names."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    handler = partial(Quiet, directory=fake.archive.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}/{fake.archive.name}"
        monkeypatch.setenv(CIFAR10_URL_VARIABLE, address)
        yield fake
        server.shutdown()
        thread.join()


def assert_is(fake: FakeCifar10, sets: tuple[ImageTensors, ImageTensors]) -> None:
    names = [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"]
    for part, batches in zip(sets, names, strict=True):
        assert isinstance(part, ImageTensors)
        expected = np.concatenate([fake.images[name] for name in batches])
        assert np.array_equal(part.images.numpy(), expected)
        assert part.labels.tolist() == [label for name in batches for label in fake.labels[name]]
        assert part.classes == fake.classes


@pytest.mark.parametrize("download", [True, False])
def test_cifar10_is_read_from_its_folder_with_each_channel_in_its_place(fake, download):
    assert_is(fake, cifar10(fake.batches.parent, download=download))


def test_cifar10_is_read_from_the_folder_of_the_batches_itself(fake):
    assert_is(fake, cifar10(str(fake.batches), download=False))


@pytest.mark.parametrize("download", [True, False])
def test_cifar10_is_read_from_the_archive_alone(fake, download):
    shutil.rmtree(fake.batches)
    assert_is(fake, cifar10(fake.archive.parent, download=download, progress=False))


def test_cifar10_is_known_by_its_name_its_files_and_its_archive(fake):
    assert is_cifar10("cifar10")
    assert is_cifar10(fake.batches)
    assert is_cifar10(str(fake.batches.parent))
    shutil.rmtree(fake.batches)
    assert is_cifar10(fake.archive.parent)
    fake.archive.unlink()
    assert not is_cifar10(fake.archive.parent)


def test_a_folder_of_images_and_the_shapes_are_no_cifar10(tmp_path):
    assert not is_cifar10(write_class_folders(tmp_path / "photos"))
    assert not is_cifar10("shapes")


def test_a_folder_that_holds_cifar10_is_opened_as_such_and_nothing_is_downloaded(fake, monkeypatch):
    monkeypatch.setattr(
        cifar10_module, "download_cifar10", lambda *a, **k: pytest.fail("downloaded")
    )
    train, validation, test = open_parts(fake.batches.parent)
    assert validation is None
    assert_is(fake, (train, test))


def test_cifar10_by_its_name_is_kept_in_the_folder_data_of_this_one(served, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train, validation, test = open_parts("cifar10")
    assert validation is None
    assert_is(served, (train, test))
    assert (tmp_path / "data" / served.batches.name).is_dir()


def test_cifar10_is_downloaded_from_the_address_in_the_variable(served, tmp_path):
    root = tmp_path / "new" / "data"
    assert download_cifar10(root, progress=False) == root / "cifar-10-batches-py"
    assert_is(served, cifar10(root, download=False))


def test_a_damaged_batch_is_healed_by_a_download(served, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(served.batches, root / served.batches.name)
    (root / served.batches.name / "data_batch_3").write_bytes(b"damaged")
    assert_is(served, cifar10(root, progress=False))


def test_cifar10_that_is_there_is_not_downloaded_again(fake):
    fake.archive.unlink()
    before = {file: file.stat().st_mtime_ns for file in fake.batches.iterdir()}
    assert download_cifar10(fake.batches.parent) == fake.batches
    assert {file: file.stat().st_mtime_ns for file in fake.batches.iterdir()} == before


@bad_input
def test_without_a_download_a_damaged_batch_is_named(fake):
    fake.archive.unlink()
    batch = fake.batches / "data_batch_3"
    batch.write_bytes(b"damaged")
    text = (
        f"{batch}: damaged (wrong MD5 sum); delete it and get CIFAR-10 again with "
        f"alexnet-lib download cifar10 --root {fake.batches.parent}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        cifar10(fake.batches.parent, download=False)


@bad_input
def test_without_a_download_a_damaged_archive_is_named(fake):
    shutil.rmtree(fake.batches)
    fake.archive.write_bytes(fake.archive.read_bytes()[:-100])
    with pytest.raises(ValueError, match=re.escape(f"{fake.archive}: damaged (wrong MD5 sum)")):
        cifar10(fake.archive.parent, download=False)


@bad_input
def test_without_a_download_missing_files_are_told_how_to_be_got(fake, tmp_path):
    text = (
        f"{tmp_path / 'data' / 'cifar-10-batches-py' / 'data_batch_1'}: missing; get CIFAR-10 "
        f"with alexnet-lib download cifar10 --root {tmp_path / 'data'}"
    )
    with pytest.raises(FileNotFoundError, match=re.escape(text)):
        cifar10(tmp_path / "data", download=False)


def test_without_a_network_the_error_says_what_was_tried_and_what_to_do(
    fake, tmp_path, monkeypatch
):
    mine = "http://127.0.0.1:9/mine.tar.gz"
    monkeypatch.setenv(CIFAR10_URL_VARIABLE, mine)
    with pytest.raises(OSError, match=r"no address gave cifar-10-python\.tar\.gz") as error:
        cifar10(tmp_path / "data", progress=False)
    text = str(error.value)
    for address in (mine, "http://127.0.0.1:9/own-host.tar.gz"):
        assert re.search(f"^{re.escape(address)}: .*refused", text, re.MULTILINE)
    assert f"(MD5 {fake.md5})" in text
    assert f"put it into {(tmp_path / 'data').resolve()}" in text
    assert f"set {CIFAR10_URL_VARIABLE} to an address" in text


def test_the_folder_may_be_below_the_home_folder(fake, monkeypatch):
    monkeypatch.setenv("HOME", str(fake.batches.parent))
    monkeypatch.setenv("USERPROFILE", str(fake.batches.parent))
    assert_is(fake, cifar10("~", download=False))
    assert_is(fake, cifar10("~/cifar-10-batches-py", download=False))
    assert download_cifar10("~") == fake.batches
    assert is_cifar10("~")


@bad_input
@pytest.mark.parametrize("root", [3, None])
def test_a_root_that_is_no_path_is_named(root):
    for function in (cifar10, download_cifar10):
        with pytest.raises(TypeError, match=r"^root is a \w+; expected a path"):
            function(root)


# Archives and files of strangers: even one whose MD5 sum is right harms nothing


def hostile_archive(fake: FakeCifar10, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data set's archive with members that lead elsewhere, whose sum counts as right."""
    folder.mkdir()
    archive = folder / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("../outside", str(folder.parent / "outside"), "cifar-10-batches-py/../../x"):
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"evil"))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        tar.add(fake.batches, CIFAR10.base_folder)
        member = tarfile.TarInfo("cifar-10-batches-py/test_batch")
        member.size = cifar10_module._MOST_BYTES + 1
        tar.addfile(member, io.BytesIO(bytes(member.size)))
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    return archive


def test_only_the_known_files_leave_the_archive(fake, tmp_path, monkeypatch):
    folder = hostile_archive(fake, tmp_path / "data", monkeypatch).parent
    before = {*tmp_path.iterdir()}
    assert_is(fake, cifar10(folder, download=False))
    assert {*tmp_path.iterdir()} == before
    assert {file.name for file in folder.iterdir()} == {CIFAR10.base_folder, CIFAR10.filename}
    for file in (folder / CIFAR10.base_folder).iterdir():
        assert file.is_file()
        assert not file.is_symlink()


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("content", [Evil(), {"data": Evil()}, {"data": os.system}])
def test_no_code_of_a_file_is_run(fake, content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = fake.batches / "data_batch_1"
    file.write_bytes(pickle.dumps(content))
    sums = {**dict(CIFAR10.train_list), file.name: hashlib.md5(file.read_bytes()).hexdigest()}
    monkeypatch.setattr(CIFAR10, "train_list", [[*pair] for pair in sums.items()])
    with pytest.raises(ValueError, match="data_batch_1: it is not a file of CIFAR-10"):
        cifar10(fake.batches.parent, download=False)
    assert not (tmp_path / "evil").exists()


def test_two_at_once_unpack_and_read_the_same(served, tmp_path):
    results = []
    run = lambda: results.append(cifar10(tmp_path / "data", progress=False))
    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    for sets in results:
        assert_is(served, sets)
