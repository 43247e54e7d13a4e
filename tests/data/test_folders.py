"""What people's folders look like: every entry is used, litter, or spoken of."""

import contextlib
import errno
import os
import re
import shutil
import threading
import unicodedata
import warnings

import pytest
from helpers import write_class_folders
from PIL import Image

from alexnet_lib import interrupts
from alexnet_lib.data.folders import IMAGE_SUFFIXES
from alexnet_lib.data.sources import open_parts


def parts_of(root, **options):
    """The number of images of each part, None where it does not exist, and the classes."""
    parts = open_parts(root, **options)
    counts = tuple(None if part is None else len(part) for part in parts)
    return counts, parts.train.classes


PART_NAMES = [
    ("train", "train"),
    ("TRAIN", "train"),
    ("Training", "train"),
    ("training_set", "train"),
    ("train_images", "train"),
    ("seg_train", "train"),
    ("val", "validation"),
    ("Valid", "validation"),
    ("validation", "validation"),
    ("Dev", "validation"),
    ("test", "test"),
    ("Test", "test"),
    ("Testing", "test"),
    ("test-set", "test"),
]


@pytest.mark.parametrize(("name", "part"), PART_NAMES)
def test_parts_have_their_usual_names_in_any_case(tmp_path, name, part):
    names = {"train": "train", "validation": "val", "test": "test"} | {part: name}
    for count, folder in enumerate(names.values(), start=1):
        write_class_folders(tmp_path / folder, count=count)
    assert parts_of(tmp_path) == ((2, 4, 6), ("cat", "dog"))


@pytest.mark.parametrize("second", ["Test", "testing", "dev", "val"])
def test_without_a_part_of_its_own_the_second_folder_is_the_test_part(tmp_path, second):
    write_class_folders(tmp_path / "Train")
    write_class_folders(tmp_path / second, count=3)
    assert parts_of(tmp_path) == ((4, None, 6), ("cat", "dog"))


@pytest.mark.parametrize("names", [("val", "test"), ("Testing",), ("dev",)])
def test_parts_without_a_training_part_are_refused(tmp_path, names):
    for name in names:
        write_class_folders(tmp_path / name)
    with pytest.raises(ValueError, match=r"but no training part: name the folders with parts="):
        open_parts(tmp_path)


@pytest.mark.parametrize("names", [("train", "training"), ("test", "Test"), ("val", "dev")])
def test_two_folders_of_one_part_are_refused(tmp_path, names):
    for name in {"train", *names}:
        write_class_folders(tmp_path / name)
    with pytest.raises(ValueError, match=r"which both could be the (train|test|validation) part"):
        open_parts(tmp_path)


@pytest.mark.parametrize("name", ["train", "test", "val", "Training"])
def test_a_class_may_have_the_name_of_a_part(tmp_path, name):
    write_class_folders(tmp_path, ("bus", "car", name))
    assert parts_of(tmp_path)[1] == tuple(sorted(("bus", "car", name)))


def test_a_part_beside_folders_that_may_be_classes_is_refused(tmp_path):
    write_class_folders(tmp_path / "train")
    write_class_folders(tmp_path, ("bus", "car"))
    with pytest.raises(ValueError, match=r"\['train'\], which look like parts, beside bus, car:"):
        open_parts(tmp_path)
    assert parts_of(tmp_path, parts={"train": "train"})[0] == (4, None, None)
    assert parts_of(tmp_path, parts={}) == ((8, None, None), ("bus", "car", "train"))


def test_folders_beside_the_parts_are_named_in_a_warning(tmp_path):
    write_class_folders(tmp_path / "train")
    write_class_folders(tmp_path / "test")
    (tmp_path / "annotations").mkdir()
    with pytest.warns(UserWarning, match=r"so annotations are ignored: to use them, name the"):
        assert parts_of(tmp_path)[0] == (4, None, 4)


def test_unlabelled_test_images_are_named_with_the_remedy(tmp_path):
    write_class_folders(tmp_path / "train")
    write_class_folders(tmp_path, ("test",))
    with pytest.raises(ValueError, match=r"test has no folders of classes; expected CLASS/IMAGE"):
        open_parts(tmp_path)
    assert parts_of(tmp_path, parts={"train": "train"})[0] == (4, None, None)


def test_training_and_test_images_without_classes_do_not_become_two_classes(tmp_path):
    write_class_folders(tmp_path, ("train", "test"))
    with pytest.raises(ValueError, match=r"has no folders of classes"):
        open_parts(tmp_path)


def test_part_names_can_be_given(tmp_path):
    for count, year in enumerate(("2019", "2020", "2021"), start=1):
        write_class_folders(tmp_path / year, count=count)
    given = {"train": "2019", "val": "2020", "test": tmp_path / "2021"}
    assert parts_of(tmp_path, parts=given) == ((2, 4, 6), ("cat", "dog"))


@pytest.mark.parametrize(
    ("parts", "error", "text"),
    [
        ({"train": "cat", "exam": "dog"}, ValueError, "parts has ['exam']; expected train, "),
        ({"test": "cat"}, ValueError, "parts has ['test']; expected train among them"),
        ({"train": "emu"}, FileNotFoundError, "parts has train="),
    ],
)
def test_wrong_part_names_are_refused(tmp_path, parts, error, text):
    write_class_folders(tmp_path)
    with pytest.raises(error, match=re.escape(text)):
        open_parts(tmp_path, parts=parts)


def test_classes_can_be_selected_and_ordered(tmp_path):
    for part in ("train", "test"):
        write_class_folders(tmp_path / part, ("ant", "bee", "cat"))
    assert parts_of(tmp_path, classes=["cat", "ant"]) == ((4, None, 4), ("cat", "ant"))
    with pytest.raises(ValueError, match=r"train has no images for the classes \['dog'\]"):
        open_parts(tmp_path, classes=["cat", "dog"])
    with pytest.raises(ValueError, match=r"classes is \['cat', 'cat'\]; expected a list of diff"):
        open_parts(tmp_path, classes=["cat", "cat"])


@pytest.mark.parametrize("litter", [".thumbnails", ".git", "@eaDir", "__MACOSX", "$RECYCLE.BIN"])
def test_folders_of_systems_are_no_classes(tmp_path, litter):
    write_class_folders(tmp_path, ("cat", "dog", litter))
    write_class_folders(tmp_path / "cat", (litter,))
    assert parts_of(tmp_path) == ((4, None, None), ("cat", "dog"))


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_linked_folders_and_files_belong_to_their_class(tmp_path):
    elsewhere = write_class_folders(tmp_path / "elsewhere", ("more",), count=5)
    root = write_class_folders(tmp_path / "root")
    (root / "cat" / "linked").symlink_to(elsewhere / "more", target_is_directory=True)
    (root / "dog" / "linked.png").symlink_to(elsewhere / "more" / "0.png")
    (root / "emu").symlink_to(elsewhere / "more", target_is_directory=True)
    assert parts_of(root) == ((4 + 5 + 1 + 5, None, None), ("cat", "dog", "emu"))


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links_in_a_circle_and_to_nothing_are_named(tmp_path):
    root = write_class_folders(tmp_path)
    (root / "cat" / "circle").symlink_to(root / "cat", target_is_directory=True)
    (root / "dog" / "gone.png").symlink_to(root / "nothing.png")
    with pytest.warns(UserWarning, match="circle.*behind a link.*gone.png.*to nothing"):
        assert parts_of(root)[0] == (4, None, None)


def test_files_that_are_not_used_are_named_wherever_they_lie(tmp_path):
    write_class_folders(tmp_path / "train")
    for name in ("read me.txt", "train/loose.jpg", "train/cat/notes.docx"):
        (tmp_path / name).write_text("")
    with pytest.warns(UserWarning, match="ignored") as caught:
        open_parts(tmp_path)
    text = " ".join(str(warning.message) for warning in caught)
    assert all(name in text for name in ("read me.txt", "loose.jpg", "notes.docx"))


@pytest.mark.parametrize("suffix", [".JPG", ".jfif", ".webp", ".avif", ".tga", ".ppm", ".Png"])
def test_images_are_known_by_their_endings_in_any_case(tmp_path, suffix):
    write_class_folders(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "cat" / f"another{suffix}")
    assert suffix.lower() in IMAGE_SUFFIXES
    assert parts_of(tmp_path)[0] == (5, None, None)


def test_composed_and_decomposed_names_are_the_same_class(tmp_path):
    forms = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    write_class_folders(tmp_path / "train", ("bar", forms[0]))
    write_class_folders(tmp_path / "test", ("bar", forms[1]))
    assert parts_of(tmp_path) == ((4, None, 4), ("bar", "café"))


def test_a_test_part_may_lack_a_class_and_says_so(tmp_path):
    write_class_folders(tmp_path / "train", ("ant", "bee", "cat"))
    write_class_folders(tmp_path / "test", ("ant", "cat"))
    with pytest.warns(UserWarning, match=r"test has no images for the classes \['bee'\]"):
        parts = open_parts(tmp_path)
    assert parts.test.classes == parts.train.classes
    assert sorted(set(parts.test.labels.tolist())) == [0, 2]


def test_a_folder_of_loose_images_is_told_what_to_do(tmp_path):
    for i in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    with pytest.raises(ValueError, match=r"it has 3 images itself: put those of each class into"):
        open_parts(tmp_path)


def test_a_folder_around_the_folder_is_named(tmp_path):
    write_class_folders(tmp_path / "pets")
    with pytest.raises(ValueError, match=r"has one class, 'pets'; expected .* or .*pets as data"):
        open_parts(tmp_path)


@pytest.mark.parametrize("name", ["images.zip", "photo.png"])
def test_a_file_is_no_folder(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"is a file; expected a folder of images \(unpack"):
        open_parts(tmp_path / name)


@pytest.mark.parametrize("name", ["shapes", "cifar10"])
def test_an_own_folder_with_the_name_of_a_built_in_set(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_class_folders(tmp_path / name)
    for path in (f"./{name}", tmp_path / name):
        assert parts_of(path)[1] == ("cat", "dog")
    if name == "shapes":
        with pytest.warns(UserWarning, match=r"the folder of this name is not used: its name is"):
            assert len(open_parts(name).train) == 6000


def test_the_home_folder_is_known_by_its_short_name(tmp_path, monkeypatch):
    write_class_folders(tmp_path / "photos")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert parts_of("~/photos")[0] == (4, None, None)


def test_a_pair_of_folders_is_training_and_test_images(tmp_path):
    write_class_folders(tmp_path / "a", count=3)
    write_class_folders(tmp_path / "b")
    assert parts_of((tmp_path / "a", str(tmp_path / "b"))) == ((6, None, 4), ("cat", "dog"))


def test_only_some_heads_are_read_when_a_large_folder_is_opened(tmp_path, monkeypatch):
    from alexnet_lib.data import folders

    root = write_class_folders(tmp_path, count=20, size=(100, 120))
    opened = []
    real = folders.open_image
    monkeypatch.setattr(folders, "_HEADS", 5)
    monkeypatch.setattr(folders, "open_image", lambda file: opened.append(file) or real(file))
    assert len(open_parts(root).train) == 40
    assert len(set(opened)) == 5


@pytest.mark.parametrize("size", [(8, 8), (100, 100)])
def test_one_bad_file_stops_or_is_left_out(tmp_path, size):
    root = write_class_folders(tmp_path, count=6, size=size)
    (root / "cat" / "bad.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"bad\.png cannot be read as an image"):
        open_parts(root)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parts = open_parts(root, on_bad_image="skip")
    if size == (8, 8):  # read when opened
        assert len(parts.train) == 12
        assert parts.train.labels.bincount().tolist() == [6, 6]
        assert "bad.png cannot be read" in str(caught[0].message)
    else:  # read in each epoch, where the loader leaves it out
        assert len(parts.train) == 13
    (root / "dog" / "bad.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"2 of 14 images cannot be read, which is more than bad_"):
        open_parts(root, on_bad_image="skip")


def test_a_few_links_do_not_make_millions_of_paths(tmp_path):
    write_class_folders(tmp_path)
    for level in range(40):
        (tmp_path / "cat" / f"level{level}").mkdir()
        for name in ("left", "right"):
            link = tmp_path / "cat" / f"level{level}" / name
            link.symlink_to(tmp_path / "cat" / f"level{level + 1}", target_is_directory=True)
    (tmp_path / "cat" / "level40").mkdir()
    shutil.copy(tmp_path / "cat" / "0.png", tmp_path / "cat" / "level40" / "2.png")
    with pytest.warns(UserWarning, match="behind a link"):
        assert parts_of(tmp_path)[0] == (5, None, None)


def test_a_link_to_itself_is_named(tmp_path):
    write_class_folders(tmp_path)
    (tmp_path / "cat" / "self.png").symlink_to(tmp_path / "cat" / "self.png")
    with pytest.warns(UserWarning, match=r"self\.png \(a link to nothing, or no file\) is ignored"):
        assert parts_of(tmp_path)[0] == (4, None, None)


@pytest.mark.slow  # making and removing them takes longer than reading
def test_folders_can_be_nested_deep(tmp_path):
    write_class_folders(tmp_path)
    folders = [f"{tmp_path}/cat" + level * "/d" for level in range(1, 1500)]
    try:
        for folder in folders:
            os.mkdir(folder)
        assert parts_of(tmp_path)[0] == (4, None, None)
    except OSError as error:
        assert error.errno == errno.ENAMETOOLONG  # noqa: PT017  (of this system)
    finally:  # pytest could not remove them
        for folder in reversed(folders):
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_a_pipe_in_a_folder_is_named_and_not_waited_for(tmp_path):
    write_class_folders(tmp_path)
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    with pytest.warns(UserWarning, match=r"pipe\.png \(a link to nothing, or no file\)"):
        assert parts_of(tmp_path)[0] == (4, None, None)


def test_names_with_signs_for_the_terminal_are_escaped(tmp_path):
    write_class_folders(tmp_path)
    (tmp_path / "cat" / "a\x1b[2J.txt").touch()
    with pytest.warns(UserWarning, match=r"a\\x1b\[2J\.txt is ignored"):
        open_parts(tmp_path)


@pytest.mark.bad_input
def test_what_becomes_of_bad_images_is_checked_before_any_is_read(tmp_path):
    write_class_folders(tmp_path)
    (tmp_path / "cat" / "0.png").write_text("bad")
    for options in ({"on_bad_image": "go"}, {"bad_image_limit": 2}, {"background": "none"}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} is "):
            open_parts(tmp_path, **options)


def test_a_signal_is_noticed_while_folders_are_read(tmp_path, monkeypatch):
    write_class_folders(tmp_path)
    monkeypatch.setattr(interrupts, "_received", 15)
    monkeypatch.setattr(interrupts, "_handling", threading.get_ident())
    with pytest.raises(interrupts.Interrupted):
        open_parts(tmp_path)
