"""Strict loading of params.yaml: all problems are reported at once.

Values are written in params.yaml only, so parameter classes have no defaults. Each stage has its own class in its own
file, so that a new key of one stage reruns no other.
"""

import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from reprogpt.errors import MergeConflictError, ParamsError

PARAMS_FILE = Path("params.yaml")
DVC_FILE = Path("dvc.yaml")
LOCK_FILE = Path("dvc.lock")
_TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
# ruamel.yaml's constructors raise these for `!!bool x`, `2001-99-99`, a number of 5000 digits and the like.
_CONSTRUCTOR_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
_REPR = reprlib.Repr()
_REPR.maxlevel = 2
_SHOWN = 200  # characters of a value in a message
_BOUND_NAMES = (("gt", "above"), ("ge", "at least"), ("lt", "below"), ("le", "at most"))


class Params(BaseModel):
    """Base of the stages' parameter classes: frozen, strict types, no unknown keys, no NaN."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


P = TypeVar("P", bound=Params)


def require_divisor(value: int, of: str, info: ValidationInfo) -> int:
    """For a field validator: value, if it divides the value of the key `of`, declared above the field."""
    dividend = info.data.get(of, value)
    if dividend % value:
        raise ValueError(f"must divide {of}={dividend} without remainder")
    return value


def load_params(cls: type[P]) -> P:
    """Read the keys of `cls` from params.yaml in the current folder.

    Raises ParamsError listing every problem: unknown keys of the file, and each missing, mistyped or out-of-range
    key of `cls` with its value and what is allowed.
    """
    values = read_mapping(PARAMS_FILE)
    raise_problems(unknown_keys(values) + problems_of(cls, values))
    return cls(**_own(cls, values))


def raise_problems(problems: list[str]) -> None:
    """Raise one ParamsError with all problems; do nothing if there are none."""
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        listing = "\n".join(f"  {problem}" for problem in problems)
        raise ParamsError(f"{count} in {PARAMS_FILE}\n{listing}")


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping. Raises ParamsError if it can't be read, or as parse_mapping does."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ParamsError(f"{path} is missing in {Path.cwd()}: run from the repository's root") from None
    except OSError as error:
        raise ParamsError(f"{path} can't be read: {error.strerror or error}") from None
    return parse_mapping(content, str(path))


def parse_mapping(content: bytes, name: str) -> dict[str, Any]:
    """The mapping that a YAML file's content holds. name: the file, for messages.

    YAML 1.2, as DVC writes it: to a YAML 1.1 reader, DVC's `1e-05` is a string.
    Raises ParamsError if it is not YAML, or is not a mapping; MergeConflictError if git could not merge it.
    """
    if conflict := re.search(rb"(?m)^<{7} ", content):
        number = content.count(b"\n", 0, conflict.start()) + 1
        raise MergeConflictError(f"{name} has a merge conflict, at line {number}.\n{_conflict_advice(name)}")
    try:
        values = YAML(typ="safe", pure=True).load(content)
    except RecursionError:
        raise ParamsError(f"{name} is not readable YAML: it is nested too deeply; its values are single ones") from None
    except (YAMLError, *_CONSTRUCTOR_ERRORS) as error:
        reason = " ".join(str(error).split()).replace("<byte string>", name)
        raise ParamsError(f"{name} is not readable YAML: {_wide_colon(content) or shortened(reason)}") from None
    if not isinstance(values, dict):
        raise ParamsError(f"{name} must hold `key: value` lines, not {type(values).__name__}")
    return values


def _conflict_advice(name: str) -> str:
    if not name.startswith(LOCK_FILE.name):
        return "Edit it to what is wanted, then `git add` it"
    return (
        "DVC writes this file, so take either side whole and let DVC bring it up to date:\n"
        "settle params.yaml and data/metrics first if they conflict, then\n"
        f"git checkout --ours {LOCK_FILE} && dvc repro && git add {LOCK_FILE}\n"
        "What DVC has in its cache is restored; other stages run. `--theirs` takes the other branch's record"
    )


def _wide_colon(content: bytes) -> str:
    """What is wrong with the first line whose key ends in a full-width colon or space; "" if there is none."""
    for number, line in enumerate(content.decode("utf-8", errors="replace").splitlines(), 1):
        match = re.match(r"\s*(\w+)\s*(\uff1a|:\u3000)", line)
        if match:
            what = "a full-width colon" if match[2] == "\uff1a" else "a full-width space after the colon"
            return f"line {number} has {what} ({line.strip()}); write {match[1]}: and a space, as ASCII"
    return ""


def peek() -> dict[str, Any]:
    """The values of params.yaml without validation; {} if it can't be read, which load_params reports."""
    try:
        return read_mapping(PARAMS_FILE)
    except (ParamsError, OSError):
        return {}


def listed_keys(definition: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """The keys of params.yaml that a stage of dvc.yaml lists under `params:`, nested ones with dots.

    An item is a key of params.yaml, or a file's name with its keys, or with none for all of the file.
    values: of params.yaml.
    """
    keys: list[str] = []
    for item in definition.get("params", []):
        if isinstance(item, str):
            keys.append(item)
        elif PARAMS_FILE.name in item:
            keys += item[PARAMS_FILE.name] or list(values)
    return keys


def known_keys(values: Mapping[str, Any]) -> set[str]:
    """Every key that dvc.yaml reads from params.yaml: listed under a stage's `params:`, or in a template `${key}`.

    values: of params.yaml.
    """
    pipeline = read_mapping(DVC_FILE)
    definitions = [stage.get("do", stage) for stage in pipeline["stages"].values()]  # "do" of a foreach
    listed = [key for definition in definitions for key in listed_keys(definition, values)]
    templates = re.findall(r"\$\{\s*([\w-]+)", str(pipeline))
    return {re.split(r"[.\[]", key)[0] for key in listed} | set(templates)


def unknown_keys(values: dict[str, Any]) -> list[str]:
    """A problem for each key of `values` that no stage knows."""
    known = known_keys(values)
    return [
        f"{shown(key) if isinstance(key, tuple) else shortened(str(key))}: unknown key; no stage in {DVC_FILE} reads it"
        for key in values
        if key not in known
    ]


def problems_of(cls: type[Params], values: dict[str, Any]) -> list[str]:
    """A problem for each key of `cls` that is missing from `values` or not allowed."""
    try:
        cls(**_own(cls, values))
    except ValidationError as error:
        return [_describe(cls, problem) for problem in error.errors()]
    return []


def _own(cls: type[Params], values: dict[str, Any]) -> dict[str, Any]:
    return {key: values[key] for key in cls.model_fields if key in values}


def _describe(cls: type[Params], problem: Any) -> str:
    key = str(problem["loc"][0])
    allowed = _allowed(cls.model_fields[key])
    if problem["type"] == "missing":
        return f"{key}: missing; allowed: {allowed}"
    if problem["type"] == "secret":  # the value must not be printed
        return f"{key}: {problem['msg']}"
    if problem["type"] == "value_error":  # from one of our field validators, which states the bound
        return f"{key}: {shown(problem['input'])} {problem['ctx']['error']}"
    return f"{key}: {shown(problem['input'])} is not allowed; allowed: {allowed}"


def shown(value: object) -> str:
    """A value for a message, cut if it is long: nested aliases in YAML can make it endless."""
    if isinstance(value, int) and value.bit_length() > _SHOWN:  # Python refuses to print numbers of 5000 digits
        return f"a number of {value.bit_length()} bits"
    return shortened(repr(value) if isinstance(value, str) else _REPR.repr(value))


def shortened(text: str) -> str:
    """The text, cut if it is long."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _allowed(field: FieldInfo) -> str:
    if field.description:
        return field.description
    annotation: Any = field.annotation
    if get_origin(annotation) is Literal:
        return " or ".join(str(choice) for choice in get_args(annotation))
    bounds = [
        f"{phrase} {getattr(constraint, name)}"
        for constraint in field.metadata
        for name, phrase in _BOUND_NAMES
        if getattr(constraint, name, None) is not None
    ]
    return " ".join([_TYPE_NAMES[annotation], " and ".join(bounds)]).strip()
