# Licensed under the Apache License, Version 2.0.
"""Options as they are written: YAML files, and values on a command line."""

from pathlib import Path

import yaml


MAX_VALUES = 10_000  # in a file; aliases may make far more of a few lines


class _Loader(yaml.SafeLoader):
    """Plain values alone; a key that is given twice, of which YAML takes the later value in silence, is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int):
                raise _error(f"a key must be a name, not {key!r}", key_node)
            if key in seen:
                raise _error(f"{key!r} is given twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _error(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)


def read_options(path: str | Path) -> dict:
    """
    The nested options of a YAML file.

    Raises:
        ValueError: if it is not there or no such file, with the line and what is wrong.
    """
    path = Path(path)
    if not path.is_file():
        reason = " (it is a folder)" if Path(path).is_dir() else ""
        raise ValueError(f"There is no configuration file {path}{reason}.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # a SafeLoader
        _check_size(content)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ValueError(f"{path}{line}: {problem}. It must hold options by section, in YAML.") from None
    except (ValueError, RecursionError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeError) else str(error).splitlines()[0]
        raise ValueError(f"{path}: {reason}. It must hold options by section, in YAML.") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold options by section; got {type(content).__name__}.")
    return content


def _check_size(content) -> None:
    """Aliases may refer to what holds them, or make billions of values."""
    count, rest = 0, [content]
    while rest:
        value = rest.pop()
        count += 1
        if count > MAX_VALUES:
            raise ValueError(f"there are more than {MAX_VALUES} values")
        rest += value.values() if isinstance(value, dict) else value if isinstance(value, list) else []


def parse_value(text: str, is_text: bool, may_be_null: bool):
    """
    The value that an option has on a command line, in YAML's notation.

    Args:
        text: as it was given.
        is_text: whether the option is a text, such as a path or a name, which is taken as it is.
        may_be_null: whether such a text may be `null`, for none.
    """
    if is_text:
        return None if may_be_null and text == "null" else text
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError):
        return text  # which the check of the option's type names
