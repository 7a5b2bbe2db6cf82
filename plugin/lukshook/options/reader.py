"""What reads one value of the configuration, and what a schema says of such values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Generic, TypeVar

from attrs import frozen

from lukshook.options.names import LONGEST_NAME, PATTERN

_T = TypeVar("_T")
#: A piece of a JSON schema, draft-07: what taplo and the editors that use it read.
Schema = dict[str, Any]
#: Made when it is asked for: hooks need none.
Shape = Callable[[], Schema]


@frozen(eq=False, repr=False)  # every start of lukshook pays for what attrs makes
class Reader(Generic[_T]):
    """Calls *read*, which gives the value as lukshook uses it, or raises ValueError with what would have fitted.

    *shape*: what *read* takes, as far as a schema can say that: it refuses nothing that *read* takes.
    """

    read: Callable[[Any], _T]
    shape: Shape

    def __call__(self, value: Any) -> _T:
        """What *value* means. Raises ValueError, `LukshookError`."""
        return self.read(value)


def shaped(shape: Shape) -> Callable[[Callable[[Any], _T]], Reader[_T]]:
    """Make a function a reader of values of that *shape*."""
    return lambda read: Reader(read, shape)


def text(pattern: str) -> Schema:
    """A text that *pattern* matches as a whole; it means the same in Python, Rust and JavaScript."""
    return {"type": "string", "pattern": f"^(?:{pattern})$"}


def number(least: int, most: int) -> Schema:
    """A whole number."""
    return {"type": "integer", "minimum": least, "maximum": most}


def several(one: Schema) -> Schema:
    """A list with at least one item."""
    return {"type": "array", "items": one, "minItems": 1}


def table(members: Mapping[str, Reader[Any]], needed: Collection[str] = ()) -> Schema:
    """A table with no others than these *members*."""
    needs = {"required": list(needed)} if needed else {}
    shapes = {name: member.shape() for name, member in members.items()}
    return {"type": "object", "properties": shapes, **needs, "additionalProperties": False}


def by_name(one: Schema) -> Schema:
    """A table of such things by their names."""
    names = {"pattern": f"^{PATTERN}$", "maxLength": LONGEST_NAME}
    return {"type": "object", "propertyNames": names, "additionalProperties": one}
