"""The promises of what is printed: columns that align, durations in the unit that fits."""

import sys

import pytest
from tqdm import tqdm

from alexnet_lib.text import format_duration, format_table, say


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
