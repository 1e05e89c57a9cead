"""What every section of the manifest is made of."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints


def _as_tuple(value: Any) -> Any:
    """One pattern is a list of one; anything else is left for the type to refuse."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


Text = Annotated[str, StringConstraints(min_length=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Patterns = Annotated[
    tuple[Text, ...],
    BeforeValidator(_as_tuple, json_schema_input_type=str | list[str]),
    Field(min_length=1),
]


class Section(BaseModel):
    """Base of every part of the manifest."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
        serialize_by_alias=True,
    )
