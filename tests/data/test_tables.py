"""CSV files of image,label, as competitions hand them out."""

import os
import re
import threading

import pytest
import torch
from helpers import random_pixels, write_class_folders
from PIL import Image

from alexnet_lib import interrupts
from alexnet_lib.data import tables
from alexnet_lib.data.images import read_image
from alexnet_lib.data.sources import open_parts


def write_images(folder, names, size=8):
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        Image.fromarray(random_pixels(size, size, seed)).save(folder / name)
    return folder


def write_csv(file, *lines, encoding="utf-8"):
    file.write_text("\n".join(lines) + "\n", encoding=encoding)
    return file


def test_images_and_labels_are_those_of_the_lines(tmp_path):
    write_images(tmp_path, ["a.png", "b.png", "c.png"])
    table = write_csv(tmp_path / "labels.csv", "image,label", "c.png,emu", "a.png,cat", "b.png,emu")
    train = open_parts(table).train
    assert train.classes == ("cat", "emu")
    assert train.labels.tolist() == [1, 0, 1]
    for i, name in enumerate(["c.png", "a.png", "b.png"]):
        assert torch.equal(train.image(i), read_image(tmp_path / name))


def test_the_layout_of_kaggles_cifar10(tmp_path):
    names = [f"{i}.png" for i in range(1, 5)]
    write_images(tmp_path / "train", names)
    write_images(tmp_path / "test", names)
    lines = ["id,label", "1,frog", "2,truck", "3,truck", "4,deer"]
    train = open_parts(str(write_csv(tmp_path / "trainLabels.csv", *lines))).train
    assert train.classes == ("deer", "frog", "truck")
    assert train.labels.tolist() == [1, 2, 2, 0]
    assert torch.equal(train.image(3), read_image(tmp_path / "train" / "4.png"))


@pytest.mark.parametrize(
    "header", ["file;label", "label\timage", "Path,Class", "filename,x", "species,file_name,width"]
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_usual_headers_delimiters_and_encodings(tmp_path, header, encoding):
    write_images(tmp_path, ["a.png", "b.png"])
    delimiter = re.search("[;\t,]", header)[0]
    columns = header.split(delimiter)
    image = next(i for i, name in enumerate(columns) if name.lower()[0] in "fip")
    rows = []
    for name, label in (("a.png", "Kätzchen"), ("b.png", "dog")):
        cells = ["7"] * len(columns)
        cells[image] = name
        cells[1 - image] = label
        rows.append(delimiter.join(cells))
    table = write_csv(tmp_path / "x.csv", header, *rows, encoding=encoding)
    assert open_parts(table).train.classes == ("Kätzchen", "dog")


def test_labels_that_are_numbers_are_in_their_order(tmp_path):
    write_images(tmp_path, [f"{i}.png" for i in range(12)])
    lines = [f"{i}.png,{i}" for i in range(12)]
    train = open_parts(write_csv(tmp_path / "x.csv", "image,label", *lines)).train
    assert train.labels.tolist() == list(range(12))
    assert train.classes == tuple(map(str, range(12)))


def test_the_folder_of_the_images_can_be_given(tmp_path):
    for folder in ("one", "two"):
        write_images(tmp_path / folder, ["a.png", "b.png"])
    table = write_csv(tmp_path / "x.csv", "image,label", "a.png,cat", "b.png,dog")
    with pytest.raises(FileNotFoundError, match=r"is in several folders: .*one, .*two; name the"):
        open_parts(table)
    assert len(open_parts(table, parts={"train": "two"}).train) == 2


def test_a_pair_of_tables_is_training_and_test_images(tmp_path):
    write_images(tmp_path, ["a.png", "b.png", "c.png", "d.png"])
    train = write_csv(tmp_path / "a.csv", "image,label", "a.png,cat", "b.png,dog")
    test = write_csv(tmp_path / "b.csv", "image,label", "c.png,dog", "d.png,cat")
    parts = open_parts((train, test))
    assert parts.test.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["image,label"], "has no rows"),
        ([""], "has the columns"),
        (["a,b,c", "1,2,3"], "has the columns ['a', 'b', 'c']; expected a header with 'image'"),
        (["image,label", "a.png,cat", "b.png,"], "has no label in the lines 3"),
        (["image,label", "a.png,cat", "a.png,dog"], "line 3: a.png has the label 'dog', and 'cat'"),
        (["image,label", "a.png,cat", "b.png,dog", "b.png,dog"], "names 1 image twice"),
        (["image,label", "a.png,cat", "b.png"], "line 3: 1 columns; expected 2"),
        (["image,label", "a.png,cat", "b.png,cat"], "has one label, 'cat'; expected at least two"),
        (["image,label", "a.png,cat", "z.png,dog"], "names 1 image not in"),
        (["image,label", "y.png,cat", "z.png,dog"], "its first image, 'y.png', is neither in"),
    ],
)
def test_faults_of_a_table_are_named(tmp_path, lines, text):
    write_images(tmp_path, ["a.png", "b.png"])
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(text)):
        open_parts(write_csv(tmp_path / "x.csv", *lines))


def test_another_encoding_is_named(tmp_path):
    table = write_csv(tmp_path / "x.csv", "image,label", "a.png,Kätzchen", encoding="cp1252")
    with pytest.raises(ValueError, match="is not UTF-8"):
        open_parts(table)


def test_classes_can_be_given_and_must_hold_every_label(tmp_path):
    write_images(tmp_path, ["a.png", "b.png"])
    table = write_csv(tmp_path / "x.csv", "image,label", "a.png,cat", "b.png,dog")
    assert open_parts(table, classes=("dog", "cat")).train.labels.tolist() == [1, 0]
    with pytest.raises(ValueError, match="has the labels dog, which are not in classes"):
        open_parts(table, classes=("cat", "emu"))


def test_a_missing_table_is_a_missing_file(tmp_path):
    write_class_folders(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"labels\.csv"):
        open_parts(tmp_path / "labels.csv")


# Tables of strangers


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["image,label", f"{'a' * 200_000},cat", "b.png,dog"], "line 2: field larger than field"),
        (["image,label", "a\0.png,cat", "b.png,dog"], r"line 2: .*(the image is 'a\\x00.png'|NUL)"),
        (["image,label", ",cat", "b.png,dog"], "line 2: the image is ''; expected a path"),
        (
            ["image,label", "a.png,cat", 'b.png,"dog'],
            "line 3: unexpected end of data",
        ),
        (["," * 200_000, "a.png,cat"], r"has the columns \['', '', "),
        (["image,label", "/,cat", "b.png,dog"], "first image, '/', is neither in"),
        (["image,label", f"{'a' * 5000}.png,cat", "b.png,dog"], "its first image, 'aaa"),
        (["image,label", "a.png,cat", "b\x1b[2J.png,dog"], r"not in .*: b\\x1b\[2J\.png$"),
        (["a,b,c\x1b[2J", "a.png,cat,0"], r"has the columns \['a', 'b', 'c\\x1b\[2j'\]"),
        (["\x89PNG\r\n\x1a\n\0\0"], "has the columns"),
        (["\0" * 1000], "has the columns|NUL"),
    ],
)
def test_a_strangers_table_is_an_error_in_words(tmp_path, lines, text):
    write_images(tmp_path, ["a.png", "b.png"])
    with pytest.raises((ValueError, FileNotFoundError), match=text) as caught:
        open_parts(write_csv(tmp_path / "x.csv", *lines))
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 6000


def test_long_numbers_are_names(tmp_path):
    write_images(tmp_path, ["a.png", "b.png"])
    table = write_csv(tmp_path / "x.csv", "image,label", f"a.png,{'9' * 5000}", "b.png,10")
    assert open_parts(table).train.classes == ("10", "9" * 5000)


def test_a_binary_or_a_large_table_is_refused(tmp_path, monkeypatch):
    (tmp_path / "x.csv").write_bytes(bytes(range(256)) * 10)
    with pytest.raises(ValueError, match=r"x\.csv is not UTF-8"):
        open_parts(tmp_path / "x.csv")
    monkeypatch.setattr(tables, "_MAX_BYTES", 2000)
    with pytest.raises(ValueError, match=r"x\.csv has 2,560 bytes; expected up to 2,000"):
        open_parts(tmp_path / "x.csv")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_a_pipe_is_no_table_and_no_image_of_one(tmp_path):
    write_images(tmp_path, ["a.png", "b.png"])
    table = write_csv(tmp_path / "x.csv", "image,label", "a.png,cat", "b.png,dog")
    os.mkfifo(tmp_path / "pipe.csv")
    os.mkfifo(tmp_path / "pipe.png")
    for data in (tmp_path / "pipe.csv", (table, tmp_path / "pipe.csv")):
        with pytest.raises(FileNotFoundError, match=r"no such f.*"):
            open_parts(data)
    write_csv(table, "image,label", "a.png,cat", "pipe.png,dog")
    with pytest.raises(FileNotFoundError, match=r"not in .*: pipe\.png"):
        open_parts(table)


def test_a_path_may_lead_out_of_the_folder_and_is_opened_as_an_image_only(tmp_path):
    write_images(tmp_path, ["a.png", "b.png"])
    (tmp_path / "secret").write_text("secret words")
    (tmp_path / "below").mkdir()
    table = tmp_path / "below" / "x.csv"
    write_csv(table, "image,label", "../a.png,cat", f"{tmp_path}/b.png,dog")
    assert len(open_parts(table).train) == 2
    write_csv(table, "image,label", "../a.png,cat", "../secret,dog")
    with pytest.raises(ValueError, match="cannot be read as an image: unknown format") as caught:
        open_parts(table)
    assert "secret words" not in str(caught.value)


def test_a_signal_is_noticed_while_a_table_is_read(tmp_path, monkeypatch):
    write_images(tmp_path, ["a.png", "b.png"])
    table = write_csv(tmp_path / "x.csv", "image,label", "a.png,cat", "b.png,dog")
    monkeypatch.setattr(interrupts, "_received", 15)
    monkeypatch.setattr(interrupts, "_handling", threading.get_ident())
    with pytest.raises(interrupts.Interrupted):
        open_parts(table)
