"""A compiled pipeline and the parameters to run it with, checked against each other before anybody is asked."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from taskmem.errors import UserError
from taskmem.files import sha256_bytes
from taskmem.lineage.tools import without_userinfo
from taskmem.records import one_line, read_json

Document = dict[str, Any]
KINDS: Mapping[str, tuple[type, ...]] = {
    "STRING": (str,),
    "NUMBER_INTEGER": (int,),
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": (bool,),
    "LIST": (list,),
    "STRUCT": (dict,),
}
DIGITS = 16
SEPARATOR = "\n---\n"  # between the specification and what belongs to Kubernetes


@dataclass(frozen=True)
class Package:
    """A file that `taskmem compile` wrote: the pipeline's name, its specification for a run, and a name for these bytes."""

    path: Path
    name: str
    spec: Document
    version: str


def read_package(path: Path) -> Package:
    """The IR in a file; UserError if it is none."""
    try:
        data = path.read_bytes()
        parts = data.decode("utf-8").split(SEPARATOR)
        documents = [yaml.load(part, Loader=yaml.CSafeLoader) for part in parts]
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give a file that `taskmem compile` wrote"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no YAML ({one_line(str(error))}); give a file that `taskmem compile` wrote") from None
    name = _name(documents[0])
    if name is None or len(documents) > 2:
        raise UserError(f"{path}: no compiled pipeline; give a file that `taskmem compile` wrote")
    spec = documents[0] if len(documents) == 1 else {"pipeline_spec": documents[0], "platform_spec": documents[1]}
    return Package(path, name, spec, f"{name}-{sha256_bytes(data)[:DIGITS]}")


def read_parameters(path: Path | None, spec: Mapping[str, Any], what: str) -> Document:
    """The JSON object in a file ({} for none), if the pipeline `what` of that specification can be run with it.

    UserError naming a parameter that is unknown, missing, of another type, or a URL with a user or password in it.
    """
    given = {} if path is None else read_json(path)
    where = str(path) if path else "--params"
    if not isinstance(given, dict):
        raise UserError(f"{where}: no JSON object; give one with a member for each parameter of {what}")
    inner = spec.get("pipeline_spec", spec)
    definitions = ((inner.get("root") or {}).get("inputDefinitions") or {}).get("parameters") or {}
    if unknown := sorted(set(given) - set(definitions)):
        raise UserError(f"{where}: {unknown[0]}: no parameter of {what}; it has {', '.join(sorted(definitions))}")
    for name, definition in sorted(definitions.items()):
        if name not in given:
            if not (definition.get("isOptional") or "defaultValue" in definition):
                raise UserError(f"{where}: {name}: missing; {what} needs it")
            continue
        _check(given[name], definition.get("parameterType", ""), f"{where}: {name}")
    return given


def _name(document: Any) -> str | None:
    info = document.get("pipelineInfo") if isinstance(document, dict) else None
    name = info.get("name") if isinstance(info, dict) else None
    return name if isinstance(name, str) and isinstance(document.get("root"), dict) else None


def _check(value: Any, kind: str, where: str) -> None:
    fits = isinstance(value, KINDS.get(kind, (object,))) and (kind == "BOOLEAN" or not isinstance(value, bool))
    if not fits:
        raise UserError(f"{where}: is {type(value).__name__}; the pipeline takes {kind}")
    if isinstance(value, str) and without_userinfo(value) != value:
        raise UserError(f"{where}: {without_userinfo(value)}: every log would repeat the password in it; use a secret")
