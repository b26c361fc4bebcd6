"""Every manifest is what Kubernetes and the operators take, to the last field."""

import copy
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from manifest_parts import PLACES, Document, documents, rendered

pytestmark = pytest.mark.system
SCHEMAS = Path(__file__).parent / "schemas"
# the oldest with sidecars on by default, and what is newest
VERSIONS = ("1.29.0", "1.37.0")
METADATA = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 63}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


def custom() -> dict[str, Any]:
    """The strict schemas of the operators' types, by apiVersion/kind."""
    found: dict[str, Any] = {}
    for path in sorted(SCHEMAS.glob("*.yaml")):
        found |= yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    return found


def check(document: Document, version: str) -> None:
    """ValidationError for a document that a cluster of this version would not take."""
    kind = f"{document['apiVersion']}/{document['kind']}"
    known = custom()
    if kind not in known:
        kubernetes_validate.validate(document, version, strict=True)
        return
    whole = {
        "type": "object",
        "additionalProperties": False,
        "required": ["apiVersion", "kind", "metadata"],
        "properties": {"apiVersion": {}, "kind": {}, "metadata": METADATA, "spec": known[kind]},
    }
    jsonschema.Draft202012Validator(whole).validate(document)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("place", PLACES)
def test_every_document_is_valid(place: str, version: str) -> None:
    made = documents(rendered(place))
    assert made
    for document in made:
        check(document, version)


def test_every_schema_of_ours_is_used_and_is_a_schema() -> None:
    made = {f"{d['apiVersion']}/{d['kind']}" for place in PLACES for d in documents(rendered(place))}
    for kind, schema in custom().items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert kind in made


@pytest.mark.parametrize(
    "kind", ["StatefulSet", "NetworkPolicy", "HorizontalPodAutoscaler", "ServiceMonitor", "LocalQueue"]
)
def test_a_misspelled_field_is_found(kind: str) -> None:
    document = next(d for d in documents(rendered("overlays/prod")) if d["kind"] == kind)
    for where in ("spec", "metadata"):
        wrong = copy.deepcopy(document)
        wrong[where]["misspelled"] = 1
        with pytest.raises(jsonschema.ValidationError):
            check(wrong, VERSIONS[-1])


def test_what_no_schema_knows_is_not_passed_over() -> None:
    with pytest.raises(kubernetes_validate.SchemaNotFoundError):
        check({"apiVersion": "example.com/v1", "kind": "Unknown", "metadata": {"name": "x"}}, VERSIONS[-1])


@pytest.mark.parametrize("place", PLACES)
def test_the_same_folder_gives_the_same_bytes(place: str) -> None:
    assert rendered(place) == rendered(place)
