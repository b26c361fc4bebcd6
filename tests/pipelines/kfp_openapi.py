"""Kubeflow's published OpenAPI as its generated client holds it: every operation, and whether a body is of its model."""

import inspect
import json
import re
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

import kfp_server_api as api

SERVICES = ("Experiment", "Pipeline", "PipelineUpload", "RecurringRun", "Run", "Healthz")
PLAIN = {"str": str, "int": int, "bool": bool, "float": (int, float), "object": object}
_CALL = re.compile(r"call_api\(\s*'([^']+)', '([A-Z]+)'")
_BODY = re.compile(r"body_params = local_var_params\['(\w+)'\]")
_QUERY = re.compile(r"query_params\.append\(\('(\w+)'")
_ANSWER = re.compile(r"response_type='([^']+)'")


class MistakeError(Exception):
    """A request or an answer that the OpenAPI does not allow."""


@dataclass(frozen=True)
class Operation:
    """One operation: `body` and `answer` are models' names, `kinds` the types of what its query may hold."""

    name: str
    method: str
    path: str
    body: str | None
    answer: str
    kinds: dict[str, str]
    form: bool

    def match(self, path: str) -> dict[str, str] | None:
        """The parameters in a path, None if it is another operation's."""
        pattern = re.sub(r"\{(\w+)\}", lambda found: f"(?P<{found[1].replace('.', '_')}>[^/:]+)", self.path)
        found = re.fullmatch(pattern, path)
        return found.groupdict() if found else None


@cache
def operations() -> tuple[Operation, ...]:
    """All of them, those with fewer parameters in the path first."""
    found = []
    for service in SERVICES:
        methods = inspect.getmembers(getattr(api, f"{service}ServiceApi"), inspect.isfunction)
        found += [_operation(name, inspect.getsource(method)) for name, method in methods if "_with_http_info" in name]
    return tuple(sorted(found, key=lambda operation: operation.path.count("{")))


def _operation(name: str, source: str) -> Operation:
    path, method = _CALL.findall(source)[0]
    kinds = dict(re.findall(r":type (\w+): (\S+)", source))
    body = _BODY.findall(source)
    query = {key: kinds[key] for key in _QUERY.findall(source)}
    short = name.removesuffix("_with_http_info")
    answer = _ANSWER.findall(source)[0]
    return Operation(short, method, path, kinds[body[0]] if body else None, answer, query, "multipart" in source)


def check(value: Any, kind: str, where: str) -> None:
    """MistakeError unless JSON is of a type of the OpenAPI: no unknown member, no other type, no unknown word."""
    if inner := re.fullmatch(r"list\[(.+)\]", kind):
        _want(isinstance(value, list), where, "a list", value)
        for number, item in enumerate(value):
            check(item, inner[1], f"{where}[{number}]")
    elif inner := re.fullmatch(r"dict\(str, (.+)\)", kind):
        _want(isinstance(value, dict), where, "an object", value)
        for key, item in value.items():
            check(item, inner[1], f"{where}.{key}")
    elif kind in PLAIN:
        right = isinstance(value, PLAIN[kind]) and (kind in ("bool", "object") or not isinstance(value, bool))
        _want(right, where, kind, value)
    elif kind == "datetime":
        _want(isinstance(value, str), where, "a time", value)
        datetime.fromisoformat(value.replace("Z", "+00:00"))
    else:
        _check_model(value, getattr(api, kind), where)


def _check_model(value: Any, model: Any, where: str) -> None:
    if words := getattr(model, "allowable_values", None):
        _want(value in words, where, f"one of {words}", value)
        return
    _want(isinstance(value, dict), where, model.__name__, value)
    known = {model.attribute_map[name]: kind for name, kind in model.openapi_types.items()}
    for key, inner in value.items():
        _want(key in known, f"{where}.{key}", f"a member of {model.__name__}", inner)
        check(inner, known[key], f"{where}.{key}")


def check_query(operation: Operation, query: dict[str, str]) -> None:
    """MistakeError for an unknown parameter, one of another type, and a filter that is none."""
    for key, text in query.items():
        _want(key in operation.kinds, key, f"a parameter of {operation.name}", text)
        if operation.kinds[key] == "int":
            _want(text.isdecimal(), key, "a number", text)
        if operation.kinds[key] == "bool":
            _want(text in ("true", "false"), key, "a truth value", text)
    if "filter" in query:
        check(json.loads(query["filter"]), "V2beta1Filter", "filter")
    if "sort_by" in query:
        _want(re.fullmatch(r"\w+( (asc|desc))?", query["sort_by"]) is not None, "sort_by", "a field", query["sort_by"])


def _want(right: bool, where: str, wanted: str, value: Any) -> None:
    if not right:
        raise MistakeError(f"{where}: {value!r} is not {wanted}")
