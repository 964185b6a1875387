"""JSON that all who get a message can read: what they couldn't, its sender is told."""

from __future__ import annotations

import json
import math
from typing import Any

# Workers read no longer ones: python-engineio's json.
MAX_INTEGER_CHARACTERS = 100


def parse(text: str | bytes) -> Any:
    """What the text stands for.

    :raises ValueError: it is no JSON, or some receivers would not take it for JSON
    :raises RecursionError: too many lists or objects are within each other
    """
    return json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_integer)


def _refuse(constant: str) -> None:
    # Clients in browsers end a connection that brings one.
    raise ValueError(f"{constant} is not in JSON")


def _finite(number: str) -> float:
    """Such as 1e999 would be sent as Infinity."""
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"{number:.100} is too large")
    return value


def _integer(number: str) -> int:
    if len(number) > MAX_INTEGER_CHARACTERS:
        raise ValueError(f"an integer of {len(number)} characters; expected at most {MAX_INTEGER_CHARACTERS}")
    return int(number)
