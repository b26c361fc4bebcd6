"""What is known of a policy that was exported: which one it is, and that its files are whole. Needs no torch."""

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field

from taskmem.errors import UserError
from taskmem.files import sha256_file
from taskmem.records import Index, Part, Record, Sha256, parse_line, read_json

EXPORT = "export.json"


class Checked(Part):
    """What vLLM wrote as transformers did: greedy tokens of so many contexts, all equal."""

    vllm: str
    contexts: Annotated[int, Field(ge=1)]
    tokens: Annotated[int, Field(ge=1)]


class Export(Record):
    """export.json: the digest of the policy, hex SHA-256 of every other file by name, and the check (null: not done)."""

    policy: Sha256
    layers: Annotated[int, Field(ge=1)]
    hidden_size: Annotated[int, Field(ge=1)]
    transposed: Index
    files: dict[str, Sha256]
    checked: Checked | None


def read_export(folder: Path) -> Export:
    """The export.json of an exported policy; UserError if the folder holds none."""
    path = folder / EXPORT
    if not path.is_file():
        raise UserError(f"{path}: no such file; write the folder with `taskmem export`")
    return parse_line(json.dumps(read_json(path)), Export, str(path))


def verify_export(folder: Path) -> Export:
    """The export.json of a folder whose every file is as it was written; UserError naming the first that is not."""
    export = read_export(folder)
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {EXPORT}
    for name in sorted(present | set(export.files)):
        if name not in present or name not in export.files:
            what = "missing" if name in export.files else "not among the exported files"
            raise UserError(f"{folder / name}: {what}; export the policy again")
        if sha256_file(folder / name) != export.files[name]:
            raise UserError(f"{folder / name}: differs from what was exported; export the policy again")
    return export
