"""Recipes: options of ``grid-eval`` in a YAML file, for a question that people ask.

A file holds ``question``, options by their long names, and ``axes``; lists are written as on the
command line, or as YAML lists. What the command line gives wins. Nothing heavy is imported.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from lcm_arith import recipes
from lcm_arith.errors import InvalidContentError, NotFoundError, StorageError
from lcm_arith.formats.opening import TwiceError, strict_yaml

FOLDER: Final = Path(recipes.__file__).parent
_QUESTION: Final = "question"
_AXES: Final = "axes"


@dataclass(frozen=True)
class Recipe:
    """Some options of a grid.

    Args:
        name: Of its file, without the suffix.
        question: That it answers.
        options: Option's long name without dashes in front → value as typed.
        axes: Axis → its values as typed.
    """

    name: str
    question: str
    options: Mapping[str, str]
    axes: Mapping[str, str]

    def axes_beside(self, given: Sequence[str], taken: Collection[str] = ()) -> list[str]:
        """``NAME=V1,V2`` of the command line, then those of the recipe that it does not name.

        Args:
            given: Of the command line.
            taken: Axes that it sets otherwise.
        """
        named = {text.partition("=")[0].strip() for text in given} | set(taken)
        return [*given, *(f"{axis}={v}" for axis, v in self.axes.items() if axis not in named)]


def names() -> tuple[str, ...]:
    """Names of the shipped recipes, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def locate(name: str) -> Path:
    """The file of a shipped recipe, or of a path.

    Raises:
        NotFoundError: If it is neither.
    """
    if name in names():
        return FOLDER / f"{name}.yaml"
    if Path(name).is_file():
        return Path(name)
    close = difflib.get_close_matches(name, names(), n=1)
    raise NotFoundError(
        f"{name}: no recipe and no file of that name",
        hint=f"did you mean {close[0]}?" if close else "see: lcm-arith recipes ls",
    )


def read(name: str, options: Iterable[str] | None = None) -> Recipe:
    """A shipped recipe, or a file's.

    Args:
        name: Shipped name, or path.
        options: Names that may be set; None takes any.

    Raises:
        NotFoundError: If there is none.
        InvalidContentError: If it is no recipe, or sets what is no option.
        StorageError: If it cannot be read.
    """
    path = locate(name)
    try:
        told = strict_yaml(path.read_text(encoding="utf-8-sig"))
    except TwiceError as error:
        raise InvalidContentError(f"{path}: {error} is there twice") from error
    except ValueError as error:
        raise InvalidContentError(f"{path}: {error}") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror})") from error
    if not isinstance(told, dict) or not isinstance(told.get(_QUESTION), str):
        raise InvalidContentError(
            f"{path}: no recipe, it lacks a {_QUESTION}", hint="lcm-arith recipes show has some"
        )
    axes = told.pop(_AXES, {})
    if not isinstance(axes, dict):
        raise InvalidContentError(f"{path}: {_AXES} is no mapping of axis: values")
    question = told.pop(_QUESTION)
    if options is not None:
        _check_known(path, told, list(options))
    return Recipe(
        path.stem,
        question,
        MappingProxyType({key: _typed(path, key, value) for key, value in told.items()}),
        MappingProxyType({axis: _typed(path, axis, value) for axis, value in axes.items()}),
    )


def _check_known(path: Path, told: Mapping[str, Any], options: list[str]) -> None:
    for key in told:
        if key not in options:
            close = difflib.get_close_matches(key, [*options, _AXES, _QUESTION], n=1)
            raise InvalidContentError(
                f"{path}: {key} is no option of grid-eval",
                hint=f"did you mean {close[0]}?" if close else f"one of {', '.join(options)}",
            )


def _typed(path: Path, key: str, value: Any) -> str:
    """A value as it would be typed; a list's items are joined as their text allows."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InvalidContentError(f"{path}: {key} is neither a value nor a list of values")
    if any(";" in item for item in value):
        raise InvalidContentError(f"{path}: {key}: a value of a list holds a semicolon")
    return ";".join(value) + ";" if any("," in item for item in value) else ",".join(value)
