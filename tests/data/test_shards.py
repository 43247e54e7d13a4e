"""The promises of shards: the images, labels, order and shares of files, and nothing left out."""

import io
import json
import os
import pickle
import re
import sys
import tarfile
import tracemalloc
from pathlib import Path

import pytest
import torch
from helpers import assert_same_pass, random_pixels, whole_pass
from PIL import Image
from tiny import use_tiny

from alexnet_lib import CIFAR10_STATS, HorizontalFlip, build_loaders, cli
from alexnet_lib.data import folders, shards
from alexnet_lib.data.decoding import ImageError, read_image
from alexnet_lib.data.images import ImageFiles, ImageShards, ImageTensors
from alexnet_lib.data.paths import Paths
from alexnet_lib.data.preprocess import Preprocess
from alexnet_lib.data.sources import open_parts
from alexnet_lib.training.run_files import _digest

Members = list[tuple[str, bytes]]
CLASSES = ("cat", "dog", "owl")


def encoded(number: int, size: tuple[int, int] = (100, 110), kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(random_pixels(*size, seed=number)).save(stream, kind)
    return stream.getvalue()


def samples(numbers, label=lambda i: str(i % 3), **image) -> Members:
    """An image and a label for each number."""
    members = []
    for i in numbers:
        members += [(f"{i:06d}.png", encoded(i, **image)), (f"{i:06d}.cls", label(i).encode())]
    return members


def write_shard(file: Path, members: Members, tar_format: int = tarfile.PAX_FORMAT) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", format=tar_format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            # As the package webdataset does, which leads to a header more for each member.
            info.mtime, info.size = 1_796_136_710.4, len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images of 3 classes in two shards."""
    write_shard(tmp_path / "data" / "000.tar", samples(range(7)))
    write_shard(tmp_path / "data" / "001.tar", samples(range(7, 12)))
    return tmp_path / "data"


def as_files(data: ImageShards, folder: Path) -> ImageFiles:
    """The same images as files, in the same order."""
    files = []
    for i in range(len(data)):
        files.append(folder / f"{i:06d}.png")
        files[-1].write_bytes(encoded(i))
    return ImageFiles(files, data.labels, data.classes)


def refusal(data, error=ValueError, **options) -> str:
    with pytest.raises(error) as caught:
        open_parts(data, **options)
    return str(caught.value)


def test_a_folder_of_shards_has_the_images_and_labels_that_were_packed(folder):
    train, validation, test = open_parts(folder)
    assert isinstance(train, ImageShards)
    assert (validation, test) == (None, None)
    assert train.classes == ("0", "1", "2")
    assert train.labels.tolist() == [i % 3 for i in range(12)]
    for i in range(12):
        pixels = torch.from_numpy(random_pixels(100, 110, seed=i)).movedim(-1, 0)
        assert torch.equal(train.image(i), pixels)
        assert str(train.source(i)) == str(folder / f"00{i // 7}.tar" / f"{i:06d}.png")


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_shards_are_those_of_files(workers, folder, tmp_path):
    options = {"image_size": 67, "batch_size": 4, "augmentation": HorizontalFlip(), "seed": 3}
    options |= {"test_fraction": 0.25, "validation_fraction": 0.2}
    packed = open_parts(folder)
    files = packed._replace(train=as_files(packed.train, tmp_path))
    mine = build_loaders(folder, num_workers=workers, **options)
    others = build_loaders(files, **options)
    assert isinstance(mine.train.dataset, ImageShards)
    assert mine.stats == others.stats
    for _ in range(2):  # epochs
        assert_same_pass(mine.train, others.train)
    assert_same_pass(mine.validation, others.validation)
    assert_same_pass(mine.test, others.test)


def test_a_pass_over_shards_goes_on_in_the_middle_of_an_epoch(folder):
    options = {"image_size": 67, "batch_size": 2, "augmentation": HorizontalFlip()}
    loader = build_loaders(folder, **options).train
    loader.set_epoch(5)
    state, whole = loader.state(), list(loader)
    fresh = build_loaders(folder, **options).train
    fresh.set_state(state)
    rest = list(fresh.batches(fresh.epoch, 2))
    assert len(rest) == len(whole) - 2
    for (images, labels), (expected, expected_labels) in zip(rest, whole[2:], strict=True):
        assert torch.equal(images, expected)
        assert torch.equal(labels, expected_labels)


def test_shares_of_shards_together_are_each_batch(folder):
    loaders = build_loaders(folder, image_size=67, batch_size=4, augmentation=HorizontalFlip())
    parts = [list(loaders.share(i, 3).train.batches(7)) for i in range(3)]
    whole = list(loaders.train.batches(7))
    for batch, *shares in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([images for images, _ in shares]), batch[0])
        assert torch.equal(torch.cat([labels for _, labels in shares]), batch[1])


def test_small_images_of_one_size_are_decoded_once(tmp_path, monkeypatch):
    file = write_shard(tmp_path / "a.tar", samples(range(6), size=(8, 9)))
    train = open_parts(file).train
    assert isinstance(train, ImageTensors)
    assert torch.equal(train.image(4)[0], torch.from_numpy(random_pixels(8, 9, seed=4))[..., 0])
    monkeypatch.setattr(folders, "MOST_IN_MEMORY", 6 * 3 * 8 * 9 - 1)
    assert isinstance(open_parts(file).train, ImageShards)


@pytest.mark.parametrize(
    ("label", "names", "classes", "expected"),
    [
        (lambda i: CLASSES[i % 3], None, None, CLASSES),
        (lambda i: f" {CLASSES[i % 3]}\n", None, None, CLASSES),
        (lambda i: CLASSES[i % 3], None, CLASSES[::-1], CLASSES[::-1]),
        (lambda i: CLASSES[i % 3], CLASSES[::-1], None, CLASSES[::-1]),
        (lambda i: f"0{i % 3}", CLASSES[::-1], None, CLASSES[::-1]),
        (lambda i: str(i % 3), CLASSES[::-1], CLASSES, CLASSES),
        (lambda i: str(i % 3), None, ("2", "1", "0"), ("2", "1", "0")),
    ],
)
def test_labels_are_names_or_numbers_of_classes(label, names, classes, expected, tmp_path):
    file = write_shard(tmp_path / "a.tar", samples(range(6), label))
    if names:
        (tmp_path / "classes.txt").write_text("\n".join(names) + "\n")
    train = open_parts(file, classes=classes).train
    assert train.classes == expected
    texts = [label(i).strip() for i in range(6)]
    if set(texts) & set(expected):
        assert [expected[i] for i in train.labels] == texts
    else:
        assert train.labels.tolist() == [int(text) for text in texts]


def test_numbers_and_names_together_are_names_where_all_are_given(tmp_path):
    file = write_shard(tmp_path / "a.tar", samples(range(3), ("-1", "cat", "7").__getitem__))
    train = open_parts(file, classes=("cat", "7", "-1")).train
    assert train.labels.tolist() == [2, 0, 1]


# Names by number of the training shards and of the others, and what label 0 of the others is.
NAMED = {
    "both": (CLASSES, CLASSES, "cat"),
    "in another order": (CLASSES, CLASSES[::-1], "owl"),
    "training": (CLASSES, None, "cat"),
}


@pytest.mark.parametrize("as_mapping", [False, True])
@pytest.mark.parametrize("case", NAMED)
def test_numbers_of_another_part_are_those_of_its_own_names_or_of_the_training_parts(
    case, as_mapping, tmp_path
):
    *names, expected = NAMED[case]
    for part, of_part in zip(("train", "val"), names, strict=True):
        write_shard(tmp_path / part / "a.tar", samples(range(6)))
        if of_part:
            (tmp_path / part / "classes.txt").write_text("\n".join(of_part))
    data = {"train": tmp_path / "train", "test": tmp_path / "val"} if as_mapping else tmp_path
    parts = open_parts(data)
    assert parts.train.classes == parts.test.classes == CLASSES
    assert CLASSES[parts.test.labels[0]] == expected
    assert parts.test.labels.unique(return_counts=True)[1].tolist() == [2, 2, 2]


def test_a_class_that_the_training_part_does_not_have_is_named(tmp_path):
    for part, names in (("train", CLASSES), ("val", ("cat", "dog", "eel"))):
        write_shard(tmp_path / part / "a.tar", samples(range(6)))
        (tmp_path / part / "classes.txt").write_text("\n".join(names))
    assert "has the classes eel; expected ('cat', 'dog', 'owl')" in refusal(tmp_path)


def test_a_mark_of_utf8_at_the_start_belongs_to_no_label_and_no_name(tmp_path):
    labels = ("0", "\ufeff0", "1", "\ufeff1")
    file = write_shard(tmp_path / "a.tar", samples(range(4), labels.__getitem__))
    assert open_parts(file).train.classes == ("0", "1")
    (tmp_path / "classes.txt").write_text("cat\ndog\n", encoding="utf-8-sig")
    assert open_parts(file).train.classes == ("cat", "dog")


def test_a_class_may_lack_images_where_all_are_named_or_none_is_learned(tmp_path):
    file = write_shard(tmp_path / "a.tar", samples(range(4), lambda i: str(2 * (i % 2))))
    assert "no images for the classes 1; expected some, or classes=" in refusal(file)
    with pytest.warns(UserWarning, match="no images for the classes 1"):
        assert open_parts(file, classes=("0", "1", "2")).train.labels.tolist() == [0, 2, 0, 2]
    with pytest.warns(UserWarning, match="no images for the classes 1"):
        assert open_parts(file, to_learn=False).train.classes == ("0", "1", "2")


def test_bad_images_with_one_name_in_several_shards_are_several(tmp_path):
    for number in range(3):
        members = samples(range(3))
        members[0] = ("000000.png", members[0][1][:100])
        write_shard(tmp_path / f"{number}.tar", [(f"/all/{name}", text) for name, text in members])
    loaders = build_loaders(
        tmp_path, image_size=67, on_bad_image="skip", bad_image_limit=0.9, stats=CIFAR10_STATS
    )
    with pytest.warns(UserWarning, match="cannot be read and is left out"):
        assert [0 for loader in loaders if loader is not None for _ in loader]
    bad = {name for loader in loaders if loader is not None for name in loader.bad_images}
    assert bad == {str(tmp_path / f"{number}.tar" / "all/000000.png") for number in range(3)}


def test_a_folder_with_a_size_has_no_content(folder, tmp_path):
    expected = open_parts(folder / "000.tar").train
    whole = (folder / "000.tar").read_bytes()
    info = tarfile.TarInfo("images/")
    info.type = tarfile.DIRTYPE
    info.size = 4096
    file = tmp_path / "a.tar"
    file.write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + whole)
    assert open_parts(file).train.labels.equal(expected.labels)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_named(folder):
    os.mkfifo(folder / "002.tar")
    assert f"{folder / '002.tar'}: it is a pipe" in refusal(folder)


@pytest.mark.parametrize("name", ["{0..1}-{0..1}.tar", "{0,1}.tar", "*.tar"])
def test_a_name_with_other_than_one_range_is_refused(folder, name):
    assert "a name with one range" in refusal(folder / name, FileNotFoundError)


def test_a_label_may_be_in_a_json_file(tmp_path):
    members = []
    for i in range(3):
        text = json.dumps({"width": 9, "label": CLASSES[i] if i else "cat"})
        members += [(f"{i}.JPEG", encoded(i, kind="JPEG")), (f"{i}.json", text.encode())]
    train = open_parts(write_shard(tmp_path / "a.tar", members)).train
    assert [train.classes[i] for i in train.labels] == ["cat", "dog", "owl"]


def test_other_members_are_named_in_one_warning(tmp_path):
    members = []
    for i in range(4):
        hidden = (f"._{i:06d}.png", b"litter of macOS")
        members += [hidden, *samples([i], lambda i: str(i % 2)), (f"{i:06d}.seg.png", b"")]
    with pytest.warns(UserWarning, match=r"4 members \*\.seg\.png is ignored$") as caught:
        train = open_parts(write_shard(tmp_path / "a.tar", members)).train
    assert len(caught) == 1
    assert len(train) == 4


def test_parts_are_told_by_names_or_folders_or_given(tmp_path):
    def count(data, **options):
        return [part and len(part) for part in open_parts(data, **options)]

    flat, deep = tmp_path / "flat", tmp_path / "deep"
    for name, first in (("train-00", 0), ("train-01", 6), ("x-val-0", 12)):
        part = "val" if "val" in name else "train"
        members = samples(range(first, first + (3 if part == "val" else 6)))
        write_shard(flat / f"{name}.tar", members)
        write_shard(deep / part / f"{name[-1]}.tar", members)
    assert count(flat) == [12, None, 3]  # as for folders: val is the test set if there is no other
    assert count(deep) == [12, None, 3]
    assert count(flat, parts={}) == [15, None, None]
    assert count(deep, parts={"train": "val", "test": "train"}) == [3, None, 12]
    assert count(flat / "train-{00..01}.tar") == [12, None, None]
    assert count(flat / "train-00.tar") == [6, None, None]
    pattern = {"train": flat / "train-{00..01}.tar", "val": str(flat / "x-val-{0..0}.tar")}
    assert count(pattern) == [12, 3, None]
    assert count((flat / "train-{00..01}.tar", deep / "val")) == [12, None, 3]
    text = refusal(flat / "train-{00..03}.tar", FileNotFoundError)
    assert "train-02.tar, train-03.tar" in text
    write_shard(flat / "more.tar", samples([20]))
    assert "1 of no part" in refusal(flat)


def test_another_part_may_lack_a_class_but_has_no_other(tmp_path):
    write_shard(tmp_path / "train.tar", samples(range(6), lambda i: CLASSES[i % 3]))
    write_shard(tmp_path / "test.tar", samples(range(6), lambda i: CLASSES[1 + i % 2]))
    with pytest.warns(UserWarning, match="has no images for the classes cat"):
        test = open_parts(tmp_path).test
    assert test.classes == CLASSES
    assert test.labels.tolist() == [1, 2, 1, 2, 1, 2]
    # A number that only the order of the names would give a meaning.
    write_shard(tmp_path / "test.tar", samples(range(6)))
    assert "has the labels 0, 1, 2; expected" in refusal(tmp_path)


def test_class_folders_with_a_tar_file_beside_them_are_folders(tmp_path):
    for name in CLASSES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(encoded(0))
    write_shard(tmp_path / "train.tar", samples(range(3)))
    with pytest.warns(UserWarning, match=r"train\.tar is ignored"):
        assert isinstance(open_parts(tmp_path).train, ImageFiles)


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
@pytest.mark.parametrize("length", [90, 99, 150])
def test_long_names_are_read_in_each_format(tar_format, length, tmp_path):
    folder = "x" * length
    members = [(f"{folder}/{'y' * 60}{name}", content) for name, content in samples(range(3))]
    file = write_shard(tmp_path / "a.tar", members, tar_format)
    train = open_parts(file).train
    assert [train.members.pair(i)[1] for i in range(3)] == [name for name, _ in members[::2]]
    assert torch.equal(train.image(2), torch.from_numpy(random_pixels(100, 110, 2)).movedim(-1, 0))


def test_a_size_in_other_digits_is_read():
    field = b"\x80" + (9 << 30).to_bytes(11, "big")
    header = bytearray(tarfile.TarInfo("a.png").tobuf())
    header[124:136] = field
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 256)
    assert shards._size_in(bytes(header)) == 9 << 30
    header[0] ^= 1
    assert shards._size_in(bytes(header)) is None


GOOD = samples(range(3))
BAD = {
    "no label": (GOOD[:5], "no label for 000002"),
    "no image": (GOOD[:4] + GOOD[5:], "no image for 000002"),
    "an empty label": ([*GOOD[:5], ("000002.cls", b" \n")], "no label for 000002"),
    "apart": (GOOD[::2] + GOOD[1::2], "no label for 000000, 000001, 000002"),
    "two images": ([("000000.jpg", b""), *GOOD], "two images for 000000: jpg, png"),
    "twice": ([GOOD[0], *GOOD], "have the name 000000.png"),
    "no text": ([*GOOD[:5], ("000002.cls", b"\xff")], "000002.cls is b'\\xff'; expected UTF-8"),
    "negative": ([*GOOD[:5], ("000002.cls", b"-1")], "labels -1; expected numbers from 0"),
    "mixed": ([*GOOD[:5], ("000002.cls", b"cat")], "labels 0, cat; expected numbers from 0"),
    "no JSON": ([*GOOD[:5], ("000002.json", b"{")], "000002.json is no JSON"),
    "true": ([*GOOD[:5], ("000002.json", b'{"label": true}')], "has the label True"),
    "large": ([*GOOD[:5], ("000002.cls", b"1000000")], "label 1000000; expected 0 to 999,999"),
    "a gap": ([*GOOD[:5], ("000002.cls", b"4")], "no images for the classes 2, 3"),
    "one": (GOOD[:2], "has one label"),
    "nothing": ([], "has no images"),
}


@pytest.mark.parametrize("problem", BAD)
def test_keys_that_are_not_complete_are_named(problem, tmp_path):
    members, expected = BAD[problem]
    file = write_shard(tmp_path / "a.tar", members)
    text = refusal(file)
    assert expected in text
    assert str(file) in text or "two members" in text or "data has" in text


def test_a_label_that_no_class_has_is_named(tmp_path):
    file = write_shard(tmp_path / "a.tar", samples(range(3)))
    assert "labels 2; expected 0 to 1" in refusal(file, classes=["cat", "dog"])
    (tmp_path / "classes.txt").write_text("cat\ncat\n")
    text = refusal(file)
    assert "2 lines, and cat more than once; expected the name of a class in each" in text


def test_a_shard_that_is_cut_off_is_an_error(tmp_path):
    file = write_shard(tmp_path / "a.tar", GOOD)
    whole = file.read_bytes()
    last = whole.rindex(b"000002.png")
    for length in (last + 512 + 100, last + 200, len(whole) - len(whole) % 10_240 - 9_000):
        file.write_bytes(whole[:length])
        refusal(file)
    file.write_bytes(whole[: last + 700])
    assert f"{file} is cut off in 000002.png: it has {last + 700:,} bytes; expected" in refusal(
        file
    )
    file.write_bytes(b"")
    with pytest.warns(UserWarning, match="no mark at its end"):
        refusal(file)


def test_a_shard_without_a_mark_at_its_end_is_spoken_of(tmp_path):
    file = write_shard(tmp_path / "a.tar", GOOD)
    end = file.read_bytes().rindex(b"2") + 1  # of the last label
    file.write_bytes(file.read_bytes()[: -(-end // 512) * 512])
    with pytest.warns(UserWarning, match="has no mark at its end"):
        assert len(open_parts(file).train) == 3


def test_what_is_no_plain_tar_file_is_an_error(tmp_path):
    file = write_shard(tmp_path / "a.tar", GOOD)
    whole = file.read_bytes()
    file.write_bytes(whole + whole)
    assert "has more behind its end" in refusal(file)
    file.write_bytes(b"\x1f\x8b" + whole)
    assert "has no header of a tar file at byte 0" in refusal(file)
    with tarfile.open(file, "w") as tar:
        link = tarfile.TarInfo("000000.png")
        link.type, link.linkname = tarfile.SYMTYPE, "elsewhere.png"
        tar.addfile(link)
    assert "000000.png, a link or a device" in refusal(file)
    packed = file.rename(tmp_path / "a.tar.gz")
    assert "a.tar.gz is compressed" in refusal(packed)
    assert "a.tar.gz is compressed" in refusal(tmp_path)


def test_a_shard_that_has_changed_is_not_read(folder):
    train = open_parts(folder).train
    train.image(0)
    os.utime(folder / "000.tar", ns=(1, 1))
    with pytest.raises(ImageError, match=r"000\.tar has changed since it was opened"):
        train.image(0)
    train.image(11)  # is in the other one


def test_a_damaged_image_of_a_shard_is_named_or_left_out(tmp_path):
    members = samples(range(12))
    members[4] = (members[4][0], b"no image")
    file = write_shard(tmp_path / "a.tar", members)
    options = {"image_size": 67, "test_fraction": 0, "validation_fraction": 0}
    with pytest.raises(ImageError, match=r"000002\.png cannot be read as an image: unknown"):
        build_loaders(file, **options)
    loader = build_loaders(file, on_bad_image="skip", **options).train
    with pytest.warns(UserWarning, match=re.escape(f"{file}/000002.png cannot be read")):
        assert len(whole_pass(loader)) == 11


def test_a_copy_of_the_images_has_no_open_file(folder):
    train = open_parts(folder).train
    train.image(3)
    copy = pickle.loads(pickle.dumps(train))
    assert torch.equal(copy.image(3), train.image(3))
    part = copy.subset(torch.tensor([9, 3]))
    assert torch.equal(part.image(1), train.image(3))
    assert part.labels.tolist() == [0, 0]


def test_a_part_of_a_file_is_read_as_a_file(folder, tmp_path):
    source = open_parts(folder).train.source(5)
    (tmp_path / "5.png").write_bytes(encoded(5))
    for channels in (1, 3):
        expected = read_image(tmp_path / "5.png", channels=channels)
        assert torch.equal(read_image(source, channels=channels), expected)
    preprocess = Preprocess(60, 60)
    assert torch.equal(preprocess.read(source), preprocess.read(tmp_path / "5.png"))


def test_a_run_on_other_shards_has_another_digest(folder):
    options = {"image_size": 67, "test_fraction": 0}
    first = _digest(build_loaders(folder, **options))
    assert _digest(build_loaders(folder, **options)) == first
    write_shard(folder / "001.tar", samples(range(7, 12), size=(100, 111)))
    assert _digest(build_loaders(folder, **options)) != first


def test_paths_are_those_that_were_given():
    given = [
        Path("a/b.jpg"),
        Path("/c.jpg"),
        Path("d.jpg"),
        Path("a/e \udcff.jpg"),
        Path("/a/b.jpg"),
    ]
    paths = Paths(given)
    assert paths == given
    assert tuple(given) == paths
    assert paths != given[1:]
    assert paths[-1] == given[-1]
    assert paths[1:4:2] == (given[1], given[3])
    assert paths.subset(torch.tensor([3, 0, 3])) == [given[3], given[0], given[3]]
    with pytest.raises(IndexError):
        paths[5]


def test_a_pass_over_many_files_makes_few_objects(tmp_path):
    """No path, pair or number for each: of a million, they would take hundreds of megabytes."""
    (tmp_path / "0.png").write_bytes(encoded(0))

    def begin_pass(count: int) -> int:
        """The most bytes that Python's objects took."""
        files = Paths(tmp_path / "0.png" for _ in range(count))
        images = ImageFiles(files, torch.arange(count) % 2, ("a", "b"))
        tracemalloc.start()
        try:
            part = images.subset(torch.arange(count))
            loaders = build_loaders((part, part), image_size=67, batch_size=50, stats_images=2)
            next(iter(loaders.train))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    begin_pass(100)  # loads what is not loaded yet
    small, large = begin_pass(1_000), begin_pass(6_000)
    assert (large - small) / 5_000 < 60


def test_the_command_line_trains_on_shards_and_says_on_how_many(
    folder, tmp_path, capsys, monkeypatch
):
    use_tiny(monkeypatch)
    monkeypatch.chdir(tmp_path)
    arguments = ["--architecture", "tiny", "--batch-size", "4", "--epochs", "1", "--device", "cpu"]
    # A name with a range is found again by `evaluate` too.
    for number, data in enumerate((folder, folder / "{000..001}.tar")):
        for command in (("train", data, "--out", number, *arguments), ("evaluate", number)):
            monkeypatch.setattr(sys, "argv", ["alexnet-lib", *map(str, command)])
            with pytest.raises(SystemExit, match="0"):
                cli.main()
            out = capsys.readouterr().out
            if command[0] == "train":
                assert out.startswith(f"trained on {data}: 9 images, 1 epoch\n")
