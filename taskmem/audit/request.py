"""From an answer to the adapter that served it: the response log joined with the registry."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from taskmem.audit.adapter import audit_adapter
from taskmem.audit.history import History
from taskmem.audit.links import Chain, Link, Problem, compared, split_name
from taskmem.audit.recorded import POLICY
from taskmem.audit.registered import NONE, read_moves
from taskmem.errors import UserError
from taskmem.records import Response, one_line, parse_line
from taskmem.registry import policy_log, versions
from taskmem.registry.manifest import WEIGHTS
from taskmem.store import Store

RESPONSE, LOGS = "response", "responses*.jsonl"
NO_ADAPTER = "this was the Phase One policy, without an adapter: no feedback shaped it"


@dataclass(frozen=True)
class Served:
    """A line of a response log, and where it stands."""

    response: Response
    where: str


def find_response(id_: str, given: Sequence[Path]) -> Served:
    """The response `id_` in files, or in the files responses*.jsonl below folders.

    UserError if it is in none of them, malformed, or there twice with different content.
    """
    found = [served for path in _logs(given) for served in _in(path, id_)]
    if not found:
        names = ", ".join(str(path) for path in given)
        raise UserError(
            f"request {one_line(id_)}: in no response log of {names}; give the logs of the time it was answered"
        )
    for other in found[1:]:
        if other.response != found[0].response:
            raise UserError(
                f"request {one_line(id_)}: {found[0].where} and {other.where} say different things; one of both was changed"
            )
    return found[0]


def _logs(given: Sequence[Path]) -> Iterator[Path]:
    for path in given:
        logs = sorted(path.rglob(LOGS)) if path.is_dir() else [path]
        if not logs:
            raise UserError(f"{path}: no response log ({LOGS}) there; give the folder that the deployment wrote to")
        yield from logs


def _in(path: Path, id_: str) -> Iterator[Served]:
    # a log is long: only lines that name the request are parsed
    wanted = json.dumps(id_, ensure_ascii=False).encode()
    try:
        with path.open("rb") as handle:
            for number, line in enumerate(handle, 1):
                if wanted in line:
                    response = parse_line(line.decode(errors="replace"), Response, f"{path}:{number}")
                    if response.id == id_:
                        yield Served(response, f"{path}:{number}")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a response log") from None


def audit_request(
    store: Store, lineage: str, id_: str, given: Sequence[Path], work: Path, show_text: bool = False
) -> Chain:
    """What answered the request `id_`, and the whole chain of it; UserError as `find_response` and `audit_adapter`."""
    served = find_response(id_, given)
    response = served.response
    subject = f"request {response.id}"
    if response.adapter == NONE:
        link = Link(RESPONSE, "verified", served.where, "the response log", facts=_facts(response), rests_on=(POLICY,))
        policy = _policy_link(store, lineage, response.policy, work)
        return Chain(subject, (link, policy), (NO_ADAPTER,))
    chain = audit_adapter(store, lineage, response.adapter, work, show_text)
    link = _joined(store, served, chain)
    notes = (*_said(store, response), *chain.notes)
    return replace(chain, subject=subject, links=(link, *chain.links), notes=notes)


def _facts(response: Response) -> dict[str, Any]:
    shown = ("time", "environment", "adapter", "policy", "image", "stream", "question")
    return {**response.model_dump(mode="json", include=set(shown)), "memories": list(response.memories)}


def _joined(store: Store, served: Served, chain: Chain) -> Link:
    """The response against the bytes that the registry has for the adapter it names, and against the chain's policy."""
    response, weights, policy = served.response, chain.link(WEIGHTS), chain.link(POLICY)
    expected = weights.expected if weights else None
    problems = []
    if weights is None:
        problems.append(Problem("missing", served.where, f"the registry has no bytes of {response.adapter}"))
    elif response.adapter_digest != expected:
        problems.append(Problem("damaged", served.where, _other_bytes(store, response)))
    elif policy is not None and policy.expected != response.policy:
        problems.append(
            Problem("damaged", served.where, f"{response.adapter} is of another policy than the one that answered")
        )
    return compared(
        RESPONSE, served.where, "the registry", expected, response.adapter_digest, _facts(response), (WEIGHTS, POLICY), problems
    )  # fmt: skip


def _other_bytes(store: Store, response: Response) -> str:
    environment, _ = split_name(response.adapter)
    same = [m.name for m in versions(store, environment) if m.files.adapter_model == response.adapter_digest]
    return f"served with other bytes than {response.adapter} has: {f'those of {same[0]}' if same else 'no version has them'}"


def _said(store: Store, response: Response) -> Iterator[str]:
    """What an auditor should know of the answer, and what is no break of the chain."""
    environment, version = split_name(response.adapter)
    if environment != response.environment:
        yield f"a request of environment {response.environment} was answered with an adapter of {environment}"
    entries = [entry for entry in read_moves(store, environment).entries.values() if entry.time <= response.time]
    if not entries:
        yield f"by the log nothing was champion of {environment} yet when the request was answered"
    elif entries[-1].version != version:
        yield f"by the log {entries[-1].version or NONE} was champion when the request was answered, not {version}"


def _policy_link(store: Store, lineage: str, policy: str, work: Path) -> Link:
    """A policy's digest, against the registry's log of policies, or else against the runs that used it."""
    for change in policy_log(store):
        if change.policy == policy:
            facts = {"served since": change.time.isoformat(), "by": change.by, "number": change.number}
            return compared(
                POLICY, f"entry {change.number} of policies/log", "the registry", policy, change.policy, facts
            )
    history = History(lineage, work / "lineage")
    commit = history.naming(policy)
    run = history.json(commit, "run.json") if commit else None
    known = run["artifacts"].get("policy", []) if run and isinstance(run.get("artifacts"), dict) else []
    if commit is None or policy not in known:
        why = "neither the registry's log of policies nor a run of the lineage names it"
        return Link(POLICY, "missing", history.shown, "the response", expected=policy, reason=why)
    return compared(POLICY, f"run.json of commit {commit[:12]} of {history.shown}", "the response", policy, policy)
