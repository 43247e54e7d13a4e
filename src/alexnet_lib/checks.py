"""Checks of arguments: errors give the name, the value and what was expected."""

import math
from collections.abc import Callable, Iterable
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints


class Range(NamedTuple):
    """A range of finite numbers.

    In the type of a dataclass field, ``Annotated[float, Range(...)]``, it is checked by
    ``check_fields``.
    """

    text: str
    includes: Callable[[Any], bool]


ABOVE_ZERO = Range("a finite number above 0", lambda x: x > 0)
AT_LEAST_ZERO = Range("a finite number of at least 0", lambda x: x >= 0)
PROBABILITY = Range("a probability from 0 to 1", lambda x: 0 <= x <= 1)
FRACTION = Range("a fraction from 0 to below 1", lambda x: 0 <= x < 1)

_TYPES = {bool: "True or False", int: "an integer", float: "a number", str: "a string"}


def at_least(least: int) -> Range:
    """The integers of at least ``least``."""
    return Range(f"an integer of at least {least}", lambda x: x >= least)


def check_integer(name: str, value: object, least: int, *, optional: bool = False) -> None:
    """Raises a ``ValueError`` unless the value is an integer of at least ``least``."""
    _check(name, value, int | None if optional else int, at_least(least))


def check_number(name: str, value: object, allowed: Range) -> None:
    """Raises a ``ValueError`` unless the value is a number in the range."""
    _check(name, value, float, allowed)


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raises a ``ValueError`` unless the value is one of the choices, of the same type."""
    choices = tuple(choices)
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}")


def check_fields(instance: Any) -> None:
    """Raises a ``ValueError`` unless each field of a dataclass has the type and range it declares.

    Fields are ``Literal``; or ``bool``, ``int``, ``float``, ``str`` or ``tuple[str, ...]``, these
    also with None.
    """
    for name, hint in get_type_hints(type(instance), include_extras=True).items():
        kind, allowed = get_args(hint) if get_origin(hint) is Annotated else (hint, None)
        _check(name, getattr(instance, name), kind, allowed)


def _check(name: str, value: Any, hint: Any, allowed: Range | None) -> None:
    kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    optional = NoneType in kinds
    if value is None and optional:
        return
    kind = kinds[0]
    if get_origin(kind) is Literal:
        check_choice(name, value, get_args(kind))
        return
    if get_origin(kind) is tuple:
        fits = isinstance(value, tuple) and all(isinstance(item, str) for item in value)
        expected = "a tuple of strings"
    else:
        # For isinstance a bool is an int, but it is hardly ever meant as one.
        fits = isinstance(value, (int, float) if kind is float else kind)
        fits = fits and isinstance(value, bool) == (kind is bool)
        expected = _TYPES[kind]
        if allowed is not None:
            fits = fits and -math.inf < value < math.inf and allowed.includes(value)
            expected = allowed.text
    if not fits:
        raise ValueError(f"{name} is {value!r}; expected {expected}" + ", or None" * optional)
