"""The types shared by all sections of the manifest."""

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

_FIRST_PRINTABLE, _DELETE = 0x20, "\x7f"


def _as_tuple(value: Any) -> Any:
    """Turn a pattern or a list into a tuple; leave anything else to type validation."""
    if isinstance(value, str | int | float):  # a number is refused like one in a list
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _plain(value: str) -> str:
    """Reject control characters, which no address, name or pattern contains."""
    if any(ord(character) < _FIRST_PRINTABLE or character == _DELETE for character in value):
        raise ValueError("contains a control character; remove it")
    return value


Text = Annotated[str, StringConstraints(min_length=1, max_length=4096), AfterValidator(_plain)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Patterns = Annotated[
    tuple[Text, ...],
    BeforeValidator(_as_tuple, json_schema_input_type=str | list[str]),
    Field(min_length=1),
]


class Section(BaseModel):
    """Base class of all manifest sections."""

    # `extra` turns misspelled keys into errors, `strict` keeps "1" or true from passing as 1, and
    # attribute docstrings become the descriptions in the reference.
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
        serialize_by_alias=True,
    )
