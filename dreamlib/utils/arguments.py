"""What people pass: one value where several are taken, and the texts of papermill's `-r`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from dreamlib.utils.errors import ConfigError
from dreamlib.utils.files import parse_json

POSITIVE = TypeAdapter(Annotated[float, Field(gt=0, le=10**5, allow_inf_nan=False)])
SIZES = TypeAdapter(tuple[Annotated[int, Field(ge=2, le=10**8)], ...])


def listed(value: Any) -> list[Any]:
    """Several values, or one of them, or their text: 50, [500, 5000], 'train.batch=8', '[1, 2]'."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parse_json(value)
        except ValueError as error:
            raise ConfigError(f"{value!r} is no list: write '[500, 5000]'") from error
    if value is None or isinstance(value, str) or not isinstance(value, Iterable):
        value = [] if value is None else [value]
    return [item.item() if isinstance(item, np.generic) else item for item in value]


def taken(kind: TypeAdapter[Any], value: Any, name: str) -> Any:
    """`value`, or its text, as what `kind` says; ConfigError names what was passed."""
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        allowed = error.errors()[0]["msg"].removeprefix("Input should be ")
        raise ConfigError(f"{name} is {str(value)[:200]}, but should be {allowed}") from None
