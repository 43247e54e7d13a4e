"""The promises of the checks: an error names the argument, what came and what was expected."""

import math
import re
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from alexnet_lib.checks import (
    ABOVE_ZERO,
    AT_LEAST_ZERO,
    FRACTION,
    PROBABILITY,
    at_least,
    check_choice,
    check_fields,
    check_integer,
    check_number,
)

# For each range: its text, values inside and values outside.
RANGES = {
    ABOVE_ZERO: ("a finite number above 0", (1e-300, 1, 1e300), (0, 0.0, -0.0, -1)),
    AT_LEAST_ZERO: ("a finite number of at least 0", (0, -0.0, 2.5), (-1e-300, -1)),
    PROBABILITY: ("a probability from 0 to 1", (0, 0.5, 1, 1.0), (-1e-9, 1.001, 2)),
    FRACTION: ("a fraction from 0 to below 1", (0, 0.0, 0.999), (1, 1.0, -0.1)),
}
INSIDE = [(allowed, value) for allowed, (_, inside, _) in RANGES.items() for value in inside]
OUTSIDE = [
    (allowed, value)
    for allowed, (_, _, outside) in RANGES.items()
    for value in (*outside, math.nan, math.inf, -math.inf, None, "1", True, [1])
]


@dataclass
class Fields:
    """One field of each kind that can be declared."""

    text: str = "a"
    flag: bool = False
    count: int = 0
    number: float = 0.0
    kind: Literal["a", "b"] = "a"
    names: tuple[str, ...] = ()
    at_least_two: Annotated[int, at_least(2)] = 2
    share: Annotated[float, FRACTION] = 0.5
    maybe_text: str | None = None
    maybe_count: Annotated[int | None, at_least(1)] = None
    maybe_share: Annotated[float | None, FRACTION] = None
    maybe_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@pytest.mark.parametrize(("allowed", "value"), INSIDE)
def test_a_number_in_its_range_passes(allowed, value):
    check_number("rate", value, allowed)


@pytest.mark.parametrize(("allowed", "value"), OUTSIDE)
def test_a_number_outside_of_its_range_is_named_with_the_range(allowed, value):
    text = f"rate is {value!r}; expected {RANGES[allowed][0]}"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        check_number("rate", value, allowed)


@pytest.mark.parametrize("value", [3, 4, 10**400])
def test_an_integer_that_is_large_enough_passes(value):
    check_integer("count", value, 3)
    check_integer("count", None, 3, optional=True)


@pytest.mark.parametrize("value", [2, -3, 3.0, True, "3", math.nan, math.inf, None])
def test_another_integer_is_named_with_the_least(value):
    text = f"count is {value!r}; expected an integer of at least 3"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        check_integer("count", value, 3)


def test_an_optional_integer_may_be_none_and_the_error_says_so():
    with pytest.raises(
        ValueError, match=r"^count is 2; expected an integer of at least 3, or None$"
    ):
        check_integer("count", 2, 3, optional=True)


@pytest.mark.parametrize("value", ["a", 1, None])
def test_a_choice_passes(value):
    check_choice("kind", value, ["a", 1, None])


@pytest.mark.parametrize("value", ["b", 1.0, True, 2, ["a"], math.nan])
def test_what_is_no_choice_is_named_with_all_choices(value):
    text = f"kind is {value!r}; expected one of 'a', 1, None"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        check_choice("kind", value, ("a", 1, None))


def test_choices_may_come_from_an_iterator():
    with pytest.raises(ValueError, match=r"expected one of 'a', 'b'$"):
        check_choice("kind", "c", iter("ab"))


def test_fields_of_their_types_and_in_their_ranges_pass():
    Fields()
    Fields("b", True, -5, 3, "b", ("x", "y"), 9, 0, "c", 1, 0.0, ())


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("text", 1, "a string"),
        ("text", None, "a string"),
        ("flag", 1, "True or False"),
        ("flag", "yes", "True or False"),
        ("count", 1.0, "an integer"),
        ("count", True, "an integer"),
        ("number", "1", "a number"),
        ("number", False, "a number"),
        ("kind", "c", "one of 'a', 'b'"),
        ("kind", None, "one of 'a', 'b'"),
        ("names", ["x"], "a tuple of strings"),
        ("names", (1,), "a tuple of strings"),
        ("names", "xy", "a tuple of strings"),
        ("at_least_two", 1, "an integer of at least 2"),
        ("at_least_two", 2.0, "an integer of at least 2"),
        ("share", 1, "a fraction from 0 to below 1"),
        ("share", math.nan, "a fraction from 0 to below 1"),
        ("maybe_text", 1, "a string, or None"),
        ("maybe_count", 0, "an integer of at least 1, or None"),
        ("maybe_share", -0.5, "a fraction from 0 to below 1, or None"),
        ("maybe_names", [], "a tuple of strings, or None"),
    ],
)
def test_a_field_of_another_type_or_range_is_named(field, value, expected):
    with pytest.raises(
        ValueError, match=f"^{re.escape(f'{field} is {value!r}; expected {expected}')}$"
    ):
        Fields(**{field: value})
