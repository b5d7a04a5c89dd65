"""JSON whose values, keys and places are changed, one by one, and which is JSON still."""

import json
from typing import Any

from fuzz.choices import TEXTS, Choices, damaged


class Raw(str):
    """Stands in the text as it is."""


NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    255,
    65_536,
    2**31,
    2**63,
    -(2**63),
    2**64,
    10**400,
    0.5,
    -0.0,
    1e-320,
    1e9,
    1e308,
    -1e308,
    Raw("NaN"),
    Raw("-Infinity"),
    Raw("1e999"),
    Raw("1E2"),
    Raw("9" * 5000),
)
OTHERS = (None, True, False, [], {}, [[]], [None], {"id": 1}, [1, 2, 3, 4], [0.5, 0.5])
DEPTHS = (5, 100, 900, 2_000, 100_000)


def text_of(value: Any) -> str:
    """Returns a value as JSON; unlike the library it can be made to write what is none."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(k)}:{text_of(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(text_of, value)) + "]"
    return json.dumps(value)


def mutated(text: str, choices: Choices) -> Any:
    """Returns the value of a JSON text after some changes."""
    root = [json.loads(text)]
    for _ in range(choices.below(5)):
        places = list(_places(root))
        container, key = choices.pick(places)
        other, other_key = choices.pick(places)
        match choices.below(9):
            case 0:
                container[key] = choices.pick(NUMBERS)
            case 1:
                container[key] = choices.pick(TEXTS)
            case 2:
                container[key] = json.loads(json.dumps(choices.pick(OTHERS)))
            case 3:
                container[key] = _tweaked(container[key], choices)
            case 4 if container is not root:
                del container[key]
            case 5:
                _add(container, _copy(other[other_key]), choices)
            case 6 if isinstance(container, dict):
                container[choices.pick((*TEXTS, *container))] = container.pop(key)
            case 7:
                container[key] = _copy(other[other_key])
            case _:
                depth = choices.pick(DEPTHS)
                opened, closed = choices.pick((("[", "]"), ('{"a":', "}")))
                container[key] = Raw(opened * depth + "0" + closed * depth)
    return root[0]


def mutated_bytes(text: str, choices: Choices) -> bytes:
    """Returns JSON after some changes, seldom in another encoding or damaged."""
    data = text_of(mutated(text, choices)).encode("utf-8", "surrogatepass")
    match choices.below(24):
        case 23:
            return damaged(data, choices)
        case 22:
            return data.decode("utf-8", "replace").encode(choices.pick(("utf-16", "utf-8-sig")))
        case 21:
            return data.replace(b"{", b'{"id":1,', 1 + choices.below(3))
    return data


def _places(value: Any) -> Any:
    """Yields (container, key) of everything in a value."""
    found = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in found:
        yield value, key
        if isinstance(item, dict | list):
            yield from _places(item)


def _copy(value: Any) -> Any:
    return Raw(text_of(value)) if isinstance(value, dict | list) else value


def _add(container: Any, value: Any, choices: Choices) -> None:
    if isinstance(container, list):
        short = not isinstance(value, str) or len(value) < 10_000
        container.extend([value] * (choices.pick((1, 1, 2, 100)) if short else 1))
    else:
        container[choices.pick(TEXTS)] = value


def _tweaked(value: Any, choices: Choices) -> Any:
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return choices.pick((value + 1, value - 1, -value, value * 1000, value // 3, str(value)))
    if isinstance(value, str) and len(value) < 10_000:
        return choices.pick((value + " ", value.upper(), value[:-1], f"../{value}", value * 50))
    return [value]
