"""What a terminal and a notebook show of the results: short text, and tables."""

from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from alexnet_lib import EvalMetrics, HorizontalFlip, Prediction, build_loaders, summary
from alexnet_lib.training.fit import Run
from alexnet_lib.training.metrics import EpochMetrics, EpochRecord

METRICS = EvalMetrics(
    loss=0.5,
    accuracy=0.75,
    topk_accuracy={1: 0.75, 2: 1.0},
    confusion=np.array([[2, 1, 0], [0, 1, 0], [0, 0, 0]]),
    classes=("cat", "<b>dog", "fox"),
    images=4,
    seconds=1.0,
)


class Tables(HTMLParser):
    """The cells of the tables of a text, line by line; unbalanced tags are an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.lines, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "tr":
            self.lines.append([])
        if tag in {"td", "th"}:
            self.lines[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] in {"td", "th"}:
            self.lines[-1][-1] += data


def record(epoch, validation):
    train = EpochMetrics(1.25, 0.5, 100, 2.0, 50.0)
    return EpochRecord(epoch, 0.01, train, validation, 67)


def run(*, validation=METRICS, test=METRICS, folder=None):
    return Run((record(1, validation), record(2, validation)), test, None, folder)


def test_metrics_are_one_line():
    assert repr(METRICS) == "EvalMetrics(loss 0.5000, accuracy 75.0%, top-2 100.0% (4 images))"
    assert repr(record(1, None).train) == "EpochMetrics(loss 1.2500, accuracy 50.0%, 50.0 images/s)"


def test_a_prediction_is_one_line_also_in_a_list():
    prediction = Prediction("a.jpg", ("cat", "dog\n"), (0.934, 0.066))
    assert str([prediction]) == r"[Prediction(a.jpg: cat 93.4%, dog\n 6.6%)]"


def test_an_evaluation_is_a_table_of_its_classes():
    assert Tables(METRICS._repr_html_()).lines == [
        ["class", "accuracy", ""],
        ["cat", "66.7%", "most often confused with <b>dog (1)"],
        ["<b>dog", "100.0%", ""],
        ["fox", "no images", ""],
    ]


def test_an_evaluation_without_classes_is_its_loss():
    metrics = EvalMetrics(0.5, None, {}, None, (), 4, 1.0)
    assert "loss 0.5000 (4 images)" in metrics._repr_html_()
    assert metrics.class_lines() == []


@pytest.mark.parametrize(
    ("validation", "shown"), [(METRICS, ["0.5000", "75.0%"]), (None, [""] * 2)]
)
def test_a_run_is_a_table_of_its_epochs(validation, shown):
    result = run(validation=validation)
    header, *lines = Tables(result._repr_html_()).lines
    assert len(header) == 8
    assert lines[1] == ["2", "0.01", "67", "1.2500", "50.0%", *shown, "50.0"]
    first, *table = str(result).splitlines()
    assert first == repr(result)
    assert [line.split() for line in table[1:]] == [
        [cell for cell in line if cell] for line in lines
    ]


def test_a_run_says_what_it_has(tmp_path):
    assert repr(run(test=None)) == "Run(2 epochs, no test images)"
    assert repr(run(folder=tmp_path)).endswith(f"(4 images), in {tmp_path})")


def test_loaders_are_a_table_of_their_parts():
    loaders = build_loaders("shapes", image_size=67, batch_size=32, train_images=100)
    text = repr(loaders)
    assert [line.split()[:5] for line in text.splitlines()[1:]] == [
        ["train", "90", "3", "of", "32"],
        ["validation", "10", "1", "of", "32"],
        ["test", "2,000", "63", "of", "32"],
    ]
    assert len(Tables(loaders._repr_html_()).lines) == 4
    assert len(repr(loaders._replace(test=None)).splitlines()) == 3


def test_loaders_show_no_tensors(tmp_path):
    images = torch.rand(8, 1, 20, 20)
    data = torch.utils.data.TensorDataset(images, torch.arange(8) % 2)
    loaders = build_loaders((data, data), image_size=67, augmentation=HorizontalFlip())
    for thing in (loaders.train, loaders.train.dataset, loaders.test.dataset):
        assert len(repr(thing)) < 100, repr(thing)
    assert repr(loaders.test.dataset).endswith("(8 images, 1 channels, 2 classes)")
    assert "HorizontalFlip" in repr(loaders.train)


def test_every_table_of_a_notebook_is_complete():
    table = Tables(summary("paper")._repr_html_()).lines
    assert {len(line) for line in table} == {9}
