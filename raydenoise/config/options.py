"""A config is a frozen dataclass of options: flag, else YAML file, else default."""

import argparse
import difflib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, field, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

_YAML_TYPES: dict[Any, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}


def option(
    help: str, *, default: Any = MISSING, read: Any = str, yaml: tuple[type, ...] = (), comma: str = ",", **flag: Any
) -> Any:
    """Declare one field with what the command line needs to know of it.

    Args:
        help: for people.
        default: none where the option must be given.
        read: makes the value of a flag's text.
        yaml: types that a YAML file may hold; left out for bool, int, float and str. With `nargs` those of one item
            of a list; dict beside them lets a mapping stand for items "name=value".
        comma: stands between the parts of a tuple.
        flag: more arguments of `add_argument`; with `nargs` "?" or "*" it is a positional one.
    """
    yaml = yaml or _YAML_TYPES[read]
    metadata = {"help": help, "read": text if read is str else read, "yaml": yaml, "comma": comma, "flag": flag}
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


def text(value: str) -> str:
    """Leave a text as it is, but for a leading ~/, which no shell replaces in `--output=~/clean` or in a YAML file."""
    return os.path.expanduser(value) if value.startswith("~/") else value  # noqa: PTH111  # a text, not a path yet


def names(value: object) -> tuple[str, ...]:
    """Read names or paths: text with commas, or a list."""
    return tuple(text(str(part)) for part in (value if isinstance(value, list) else str(value).split(",")))


def address_option() -> Any:
    """Where the Ray of a verb is."""
    return option("Ray cluster; by default RAY_ADDRESS, else a private local Ray", default=None, metavar="RAY")


def quiet_option() -> Any:
    """Print errors only."""
    return option("print errors only", default=False, read=bool)


def shown(value: object, comma: str = ",") -> str:
    """Write a value as the command line takes it."""
    return comma.join(map(str, value)) if isinstance(value, tuple) else str(value)


def assignments(values: Mapping[str, object]) -> list[str]:
    """Write a mapping as the command line takes it: "depth=2", "filters=64,96", and "filters=48," of one."""
    return [
        f"{name}={shown(tuple(value)) + ',' * (len(value) == 1) if isinstance(value, list | tuple) else value}"
        for name, value in values.items()
    ]


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without its traps: 5:50 is no number to the base of 60, 4e-3 and 1.5e3 are; no name stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a name that stands twice, with - or _ between its words: the first one would be lost in silence."""
        if isinstance(node, yaml.MappingNode):
            keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge")]
            for name, count in Counter(key.value.replace("-", "_") for key in keys).items():
                if count > 1:
                    raise yaml.constructor.ConstructorError(None, None, f"{name} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)

    def text_or_number(self, node: yaml.ScalarNode) -> object:
        """Leave what has a colon as it is written."""
        if ":" in node.value:
            return node.value
        whole = node.tag.endswith(":int")
        return self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.text_or_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.text_or_number)
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?e[-+]?\d+$", re.IGNORECASE)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))

Config = TypeVar("Config")


def parse(kind: type[Config], argv: Sequence[str], *, prog: str, description: str) -> Config:
    """Make a config from a command line.

    Raises:
        SystemExit: with status 2 and a message, for anything that is not allowed.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description, allow_abbrev=False)
    of_config = "values of these options as `name: value`; flags win"
    parser.add_argument("--config", metavar="FILE.yaml", type=text, help=of_config)
    for entry in fields(kind):  # type: ignore[arg-type]  # a dataclass
        _add(parser, entry)
    given = {name: _frozen(value) for name, value in vars(parser.parse_intermixed_args(argv)).items()}
    path = given.pop("config")
    try:
        values = {**(_from_yaml(kind, Path(path)) if path else {}), **given}
        missing = [f.name for f in fields(kind) if f.default is MISSING and f.name not in values]  # type: ignore[arg-type]
        if missing:
            raise ValueError(f"{' and '.join(missing)} missing: give them as arguments or in --config")
        return kind(**values)
    except ValueError as error:
        parser.error(str(error))


def _add(parser: argparse.ArgumentParser, entry: Any) -> None:
    flag = entry.metadata["flag"]
    nothing = entry.default in (MISSING, None, ()) or entry.default is False
    default = "" if nothing else f" (default: {shown(entry.default, entry.metadata['comma'])})"
    text = {"help": entry.metadata["help"] + default, "default": argparse.SUPPRESS}
    if flag.get("nargs") in ("?", "*"):
        parser.add_argument(entry.name, type=entry.metadata["read"], **text, **flag)
    elif entry.metadata["read"] is bool:
        parser.add_argument(_flag(entry.name), action="store_true", **text)
    else:
        parser.add_argument(_flag(entry.name), type=entry.metadata["read"], **text, **flag)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _from_yaml(kind: type[Any], path: Path) -> dict[str, Any]:
    where = f"--config {path}"
    known = {entry.name: entry for entry in fields(kind)}
    named = {nearest(key, known, where=where): value for key, value in read_mapping(path, where=where).items()}
    return {name: typed(known[name], value, where=where) for name, value in named.items()}


def read_mapping(path: Path, *, where: str) -> dict[str, Any]:
    """Read a YAML file of `name: value` lines.

    Raises:
        ValueError: it is none; `where` says which file of which flag.
    """
    try:
        content = yaml.load(path.read_text(), _Loader) or {}  # a SafeLoader
    except OSError as error:
        raise ValueError(f"{where}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{where} holds a {type(content).__name__}; allowed: `name: value` lines")
    return content


def nearest(key: object, known: Iterable[str], *, where: str) -> str:
    """Find the known name that a key is, with - or _ between its words.

    Raises:
        ValueError: it is none; the message offers the nearest one.
    """
    name = str(key).replace("-", "_")
    if name in known:
        return name
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else f"; allowed: {', '.join(known)}"
    raise ValueError(f"{where}: {key} is unknown{hint}")


def typed(entry: Any, value: object, *, where: str) -> Any:
    """Check a YAML value's type and read it; null stands for the default where the default is nothing, or no items.

    Raises:
        ValueError: the option takes no such value.
    """
    if value is None and entry.default in (None, ()):
        return entry.default
    if entry.metadata["flag"].get("nargs") in ("*", "+"):
        if isinstance(value, dict) and dict in entry.metadata["yaml"]:
            value = assignments(value)
        return tuple(_typed_one(entry, item, where) for item in (value if isinstance(value, list) else [value]))
    return _typed_one(entry, value, where)


def _typed_one(entry: Any, value: object, where: str) -> Any:
    read = entry.metadata["read"]
    try:
        if not isinstance(value, entry.metadata["yaml"]) or (isinstance(value, bool) and read is not bool):
            raise TypeError(type(value).__name__)
        return read(value)
    except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
        raise ValueError(f"{where}: {entry.name} is {value!r}; allowed: {entry.metadata['help']}") from error
