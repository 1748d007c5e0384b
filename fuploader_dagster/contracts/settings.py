"""Settings: how the models of a pipeline, its queue, its state and its stores check their values.

What must always hold: a name that does not exist is an error, settings never change, and errors do
not quote values, which may be secrets. A field's docstring is its description.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from fuploader_dagster.contracts.relative_paths import placed

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """Settings of one thing. Subclasses add fields."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True
    )

    @field_validator("*", mode="after")
    @classmethod
    def _relative_to_the_file(cls, value: Any) -> Any:
        return placed(value) if isinstance(value, Path) else value
