"""The record of a run: the digest of all it was made of, and what became of every environment."""

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from taskmem.config import Profile
from taskmem.errors import UserError
from taskmem.files import atomic_write, canonical_json, sha256_bytes, sha256_tree
from taskmem.lineage.code import commit
from taskmem.lineage.outcome import OUTCOMES, Outcome
from taskmem.records import one_line, write_json, write_records

RECORD = "lineage.json"


def write_lineage(
    artifacts: Mapping[str, Sequence[Path]],
    outcomes: Sequence[Outcome],
    profile: Profile,
    image: str,
    seed: int,
    out: Path,
    summary: Path,
) -> None:
    """Write `out`/lineage.json and `out`/outcomes.jsonl, and a Markdown table of the outcomes to `summary`.

    `artifacts` holds the folders of each kind; a digest is that of the files below, whatever they are called.
    """
    if absent := [path for paths in artifacts.values() for path in paths if not path.exists()]:
        raise UserError(f"{absent[0]}: not there, so it cannot be recorded; run the stage that writes it")
    ordered = sorted(outcomes, key=lambda o: (o.environment, o.name))
    record = {
        "schema": 1,
        "commit": commit(),
        "image": image,
        "seed": seed,
        "profile": {"name": profile.name, "sha256": sha256_bytes(canonical_json(profile.model_dump(mode="json")))},
        "artifacts": {name: sorted(sha256_tree(path) for path in paths) for name, paths in sorted(artifacts.items())},
        "environments": [outcome.model_dump(mode="json", exclude={"schema_version"}) for outcome in ordered],
    }
    write_json(out / RECORD, record)
    write_records(out / OUTCOMES, ordered)
    atomic_write(summary, outcome_table(ordered))


def outcome_table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a Markdown table."""
    rows = [f"| {o.environment} | {o.name} | {o.status} | {o.version or ''} | {_cell(o.reason)} |" for o in outcomes]
    head = ["| environment | adapter | outcome | champion | reason |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows]) + "\n"


def _cell(text: str) -> str:
    """Text as text: reasons quote what others sent, and the table is shown as a page."""
    return re.sub(r"([\\`*_{}\[\]|#!~])", r"\\\1", html.escape(one_line(text), quote=False))
