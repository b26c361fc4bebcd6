"""The chain as one HTML page without any outside reference."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from taskmem.audit.graph import chain_graph
from taskmem.audit.links import Chain
from taskmem.audit.registered import LOG, VERDICT
from taskmem.audit.show import SIGNS, brief, facts_of, short
from taskmem.evaluation import report
from taskmem.evaluation.report.verdicts import grids
from taskmem.files import atomic_write

PAGE = "audit.html"


def write_page(chain: Chain, out: Path) -> None:
    """Write the page to `out`; the same chain gives the same bytes."""
    verdict, log = chain.link(VERDICT), chain.link(LOG)
    document = verdict.facts.get("document") if verdict else None
    content = {
        "chain": chain,
        "graph": chain_graph(f"What {chain.subject} rests on", chain.links),
        "signs": SIGNS,
        "verdict": grids(document) if isinstance(document, Mapping) else [],
        "moves": log.facts.get("moves", []) if log else [],
        "lists": _lists(chain),
    }
    atomic_write(out, _templates().get_template(PAGE).render(content))


def _lists(chain: Chain) -> dict[str, list[str]]:
    """Every list of ids and hashes in full, by link and fact."""
    found: dict[str, list[str]] = {}
    for link in chain.links:
        for name, value in facts_of(link).items():
            if isinstance(value, list) and value:
                found[f"{link.name}: {name.replace('_', ' ')}"] = [_entry(entry) for entry in value]
    return found


def _entry(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{str(name).replace('_', ' ')} {part}" for name, part in value.items())
    return str(value)


def _templates() -> Environment:
    # the report's own style, so that both look alike
    loaders = [PackageLoader(package, "templates") for package in (__package__ or "", report.__name__)]
    environment = Environment(
        loader=ChoiceLoader(loaders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(brief=brief, short=short, facts=facts_of)
    return environment
