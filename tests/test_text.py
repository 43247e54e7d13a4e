"""The promises of what is printed: columns that align, durations in the unit that fits."""

import io
import os
import sys
from types import SimpleNamespace

import pytest
from tqdm.std import tqdm

from alexnet_lib import text as text_module
from alexnet_lib.text import format_duration, format_table, printable, progress_bar, say


def test_columns_are_as_wide_as_their_widest_cell_and_lines_end_without_spaces():
    rows = [("layer", "weights", ""), ("conv1", "34,944", "x"), ("fc", "1", "")]
    assert format_table(rows, right={1}) == [
        "layer  weights",
        "conv1   34,944  x",
        "fc           1",
    ]


def test_columns_are_aligned_to_the_left_unless_they_are_named():
    rows = [("a", "bb"), ("ccc", "d")]
    assert format_table(rows) == ["a    bb", "ccc  d"]
    assert format_table(iter(rows), right=[0, 1]) == ["  a  bb", "ccc   d"]


def test_columns_align_whatever_the_width_of_a_sign():
    decomposed = "cafe\u0301"
    rows = [("猫", "1"), ("ﾈｺ", "2"), ("dog", "3"), (decomposed, "4"), ("猫犬", "5")]
    assert format_table(rows) == ["猫    1", "ﾈｺ    2", "dog   3", f"{decomposed}  4", "猫犬  5"]
    assert format_table(rows, right=[0])[0] == "  猫  1"


def test_a_table_without_rows_has_no_lines():
    assert format_table([]) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.4, "0 s"),
        (72.3, "72 s"),
        (89.4, "89 s"),
        (90.0, "2 min"),
        (3_000.0, "50 min"),
        (5_399.0, "90 min"),
        (5_400.0, "1.5 h"),
        (360_000.0, "100.0 h"),
    ],
)
def test_a_duration_has_the_unit_that_fits(seconds, text):
    assert format_duration(seconds) == text


def test_a_line_goes_to_the_standard_error_stream(capsys):
    say("epoch 1")
    assert capsys.readouterr() == ("", "epoch 1\n")


def test_a_line_stands_above_a_progress_bar_that_goes_on(capsys):
    with tqdm(total=4, file=sys.stderr, ascii=True, mininterval=0) as bar:
        bar.update(1)
        say("epoch 1")
        bar.update(1)
    text = capsys.readouterr().err
    # The bar's own line is cleared first; afterwards it is drawn anew.
    assert "\repoch 1\n\r" in text.replace(" ", "").replace("epoch1", "epoch 1")
    assert text.rindex("2/4") > text.index("epoch 1\n")


class Broken:
    """A stream whose reader is gone, or whose disk is full."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def write(self, text):
        raise self.error

    def flush(self):
        raise self.error

    def isatty(self):
        raise ValueError("I/O operation on closed file")


STREAMS = (
    None,
    Broken(BrokenPipeError(32, "Broken pipe")),
    Broken(OSError(28, "No space left on device")),
    Broken(ValueError("I/O operation on closed file")),
)


@pytest.mark.parametrize("stream", STREAMS)
def test_a_line_that_cannot_be_printed_is_lost_and_nothing_else(stream, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    say("nobody reads this")


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("disable", [None, False])
def test_a_bar_that_cannot_be_shown_goes_on(disable, stream, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(total=3, disable=disable, mininterval=0) as bar:
        for _ in range(3):
            bar.update()
            bar.set_postfix_str("loss 1")
            say("a line")
        assert disable is None or bar.n == 3


class Shown(list):
    """What each output of a notebook's cell shows now, as IPython's ``display`` is told."""

    def display(self, data, *, raw, display_id):
        assert raw
        assert display_id
        number = len(self)
        self.append(data)
        return SimpleNamespace(update=lambda data, raw: self.__setitem__(number, data))


@pytest.fixture
def notebook(monkeypatch):
    """The outputs that are shown beside the standard output of a notebook's cell."""
    shown = Shown()
    display = SimpleNamespace(display=shown.display)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(text_module, "_in_notebook", lambda: True)
    return shown


def test_a_notebook_is_known_by_its_stream(monkeypatch):
    assert not text_module._in_notebook()
    stream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})
    monkeypatch.setattr(sys, "stderr", stream())
    assert text_module._in_notebook()


def test_in_a_notebook_a_line_is_no_error(notebook, capsys):
    say("test: loss 1")
    assert (capsys.readouterr(), notebook) == (("test: loss 1\n", ""), [])


def test_in_a_notebook_lines_stand_above_a_bar_in_one_output_and_the_bar_goes(notebook, capsys):
    with progress_bar(total=4, bar_format="{desc}{n_fmt}", leave=False) as bar:
        bar.delay = 0
        bar.update(3)
        say("epoch 1")
        bar.set_postfix_str("")
        assert notebook == [{"text/plain": "epoch 1\n3"}]
        with progress_bar(total=1, leave=False) as inner:
            inner.update()
            inner.refresh()
        say("epoch 2")
        assert notebook == [{"text/plain": "epoch 1\nepoch 2\n3"}]
    assert notebook == [{"text/plain": "epoch 1\nepoch 2"}]
    say("test")
    assert (capsys.readouterr(), len(notebook)) == (("test\n", ""), 1)


def test_in_a_notebook_a_bar_that_is_over_at_once_leaves_no_output(notebook):
    for disable in (None, True):
        with progress_bar(range(4), disable=disable, leave=False) as bar:
            assert [*bar] == [0, 1, 2, 3]
    assert notebook == []
    with progress_bar(total=1, leave=False) as bar:
        bar.delay = 0
        bar.refresh()
        assert len(notebook) == 1
    assert notebook == [{}]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Golden Retriever", "Golden Retriever"),
        ("café", "café"),
        ("猫", "猫"),
        ("👩‍🌾", "👩‍🌾"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("a\nb\rc\x00\x07", r"a\nb\rc\x00\x07"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\udce9", r"\udce9"),
        ("\x9b2J", r"\x9b2J"),
    ],
)
def test_a_text_is_printed_without_what_a_terminal_obeys(text, shown):
    assert printable(text) == shown


NOTEBOOK = (
    """
import os, signal, sys
import pytest
from tiny import tiny_recipe, use_tiny
from alexnet_lib import RunOptions, fit

use_tiny(pytest.MonkeyPatch())

class Stop:
    def log_hyperparams(self, params): ...
    def log_metrics(self, metrics, step):
        os.kill(os.getpid(), signal.SIGINT)
    def finalize(self, status): ...

OPTIONS = RunOptions("cpu", precision="float32")

def train(**arguments):
    return fit("shapes", recipe=tiny_recipe(epochs=2), options=OPTIONS, **arguments)
""",
    "run = train()",
    "train(loggers=[Stop()])",
    "print([record.train.loss for record in sys.last_value.run.history])",
    "print([run.history[0].train.loss])",
)


@pytest.mark.skipif(os.name != "posix", reason="other systems interrupt a kernel in another way")
def test_a_notebook_shows_each_line_of_a_run_once_and_keeps_what_is_interrupted(monkeypatch):
    reason = "no notebook can be run"
    pytest.importorskip("ipykernel", reason=reason)
    nbclient, nbformat = (
        pytest.importorskip(name, reason=reason) for name in ("nbclient", "nbformat")
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    cells = [nbformat.v4.new_code_cell(code) for code in NOTEBOOK]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=300, allow_errors=True).execute()
    outputs = [cell.outputs for cell in cells]
    assert outputs[0] == []
    assert {output.get("name", "stdout") for output in [*outputs[1], *outputs[2][:-1]]} == {
        "stdout"
    }
    text = "".join(
        output["text"] if "text" in output else output["data"].get("text/plain", "") + "\n"
        for output in outputs[1]
    )
    lines = [line.split(":")[0] for line in text.splitlines() if line]
    assert lines == [
        "AlexNet (tiny, 282 parameters); recipe tiny run, 2 epochs; cpu, float32",
        "shapes",
        "epoch 1/2",
        "epoch 2/2",
        "test",
    ]
    assert outputs[2][-1]["ename"] == "Interrupted"
    assert outputs[3][0]["text"] == outputs[4][0]["text"]
