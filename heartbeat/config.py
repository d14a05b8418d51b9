"""A file of options: those of the command line, by the same names, in TOML; all that is wrong in it is said at once.

What may stand under a name is asked of the options themselves, so that a new one needs nothing here. Judges names and
kinds; what a number or a word may be is said by whoever takes it. Reads that one file, and knows no secret.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from twisted.python.reflect import accumulateClassList

from heartbeat.refusals import readable

__all__ = ["Place", "places_of", "read"]

#: What decides about the file cannot stand in it.
ELSEWHERE = ("config", "check-config")

#: Secrets stay in the environment: a file is copied, shown and committed. By what somebody may try in their place.
SECRETS = {"ai-key": "HEARTBEAT_AI_KEY", "heartbeat-ai-key": "HEARTBEAT_AI_KEY"}

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "text, or an array of texts",
}


@dataclass(frozen=True, slots=True)
class Place:
    """What may stand under one name: a `kind` of value (`list`: of texts).

    `separated`: the option itself is one text, with commas. `coerce` is the option's own, of a text.
    """

    kind: type
    separated: bool = False
    coerce: Callable[[str], Any] | None = None

    def taken(self, value: Any) -> Any:
        """The option's value for this one of the file. Raises ValueError, what it must be."""
        if self.kind is list:
            texts = [value] if isinstance(value, str) else value
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise ValueError(self._must_be(value))
            return ",".join(map(str, texts)) if self.separated else texts
        # A boolean is a number to Python.
        found: type = type(value)
        if found is not self.kind and (found, self.kind) != (int, float):
            raise ValueError(self._must_be(value))
        return value if self.coerce is None else self.coerce(value)

    def _must_be(self, value: Any) -> str:
        return f"must be {_WORDS[self.kind]}, not {_shown(value)}"


def places_of(options: Any) -> dict[str, Place]:
    """The place of each option of fresh `options` (a twisted.python.usage.Options), by its long name.

    A parameter's kind is that of its `coerce`, if that has one, else it is a text; a flag is true or false; what is a
    list may be given several times; and so may what `options.separated` names, with commas between.
    """
    parameters: list[list[Any]] = []
    flags: list[list[Any]] = []
    accumulateClassList(type(options), "optParameters", parameters)
    accumulateClassList(type(options), "optFlags", flags)
    places = {row[0]: _parameter(*row[4:]) for row in parameters}
    places |= {row[0]: Place(bool) for row in flags}
    places |= {name: Place(list) for name, value in options.items() if isinstance(value, list)}
    places |= {name: Place(list, separated=True) for name in options.separated}
    return {name: place for name, place in places.items() if name not in ELSEWHERE}


def _parameter(coerce: Any = None) -> Place:
    kind = getattr(coerce, "kind", str)
    # A number of the file is one already.
    return Place(kind, coerce=coerce if kind is str else None)


def read(path: str, places: Mapping[str, Place]) -> tuple[dict[str, Any], list[str]]:
    """What a file says, by the names of the options, and what is wrong in it: a sentence each."""
    try:
        with Path(path).open("rb") as file:
            said = tomllib.load(file)
    except OSError as error:
        return {}, [f"{path}: it cannot be read ({error.strerror})"]
    except (ValueError, RecursionError) as error:
        return {}, [f"{path}: it is no TOML ({readable(error)})"]
    taken, mistakes = {}, []
    for name, value in said.items():
        if name not in places:
            mistakes.append(f"{path}: {_unknown(name, places)}")
            continue
        try:
            taken[name] = places[name].taken(value)
        except ValueError as error:
            mistakes.append(f"{path}: {name} {error}")
    return taken, mistakes


def _unknown(name: str, places: Mapping[str, Place]) -> str:
    meant = name.lower().replace("_", "-")
    if meant in SECRETS:
        return f"{readable(name)} is a secret, which belongs into the environment ({SECRETS[meant]}) and into no file"
    if meant in ELSEWHERE:
        return f"{readable(name)} belongs on the command line (--{meant})"
    near = get_close_matches(meant, places, n=1)
    hint = f"the nearest is {near[0]}" if near else "twistd heartbeat --help names them all"
    return f"there is no option {readable(repr(name))}; {hint}"


def _shown(value: Any) -> str:
    """A value as the file has it, near enough, and not too long."""
    return str(value).lower() if isinstance(value, bool) else readable(repr(value))
