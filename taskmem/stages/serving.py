"""Everything that serves a policy on this machine, ready to be tried: `taskmem serve all`."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from taskmem.config import Profile
from taskmem.gateway.tokens import Tokens, create_token
from taskmem.policy.export import export_policy
from taskmem.policy.exported import EXPORT, read_export
from taskmem.policy.transformers_policy import policy_digest
from taskmem.progress import Note
from taskmem.stages.common import Footage, footage
from taskmem.stages.services import Ports, Services, Site
from taskmem.store import Store, open_store
from taskmem.vllm_plugin.check import Sample, greedy_check, serving_python

EXPORTED, STORE, TOKEN = "policy", "store", "token"
BY = "taskmem serve all"


@dataclass(frozen=True)
class Everything:
    """What to serve: a policy checkpoint, to one environment; `store` "" is a folder below `folder`.

    `segments` is a segmentation's folder, whose clips the export's check reads; `serving` the environment with vLLM.
    """

    policy: Path
    segments: Path
    environment: str
    folder: Path
    store: str
    serving: Path | None
    profile: Profile
    seed: int
    ports: Ports
    vllm: tuple[str, ...]


def serve_everything(what: Everything, note: Note, ready: Callable[[Services, str, Footage], None]) -> None:
    """Export the policy if it is not yet, start all services, call `ready` with them, the token and the segments, and wait.

    What they keep is below the folder and there the next time. Ends with KeyboardInterrupt, or UserError if a service ends.
    """
    film = footage(what.segments, what.profile)
    exported = _exported(what, film, note)
    url = what.store or str(what.folder / STORE)
    token = _token(open_store(url), what.environment, what.folder / TOKEN)
    site = Site(
        policy=exported,
        python=serving_python(what.serving),
        store=url,
        folder=what.folder,
        profile=what.profile,
        seed=what.seed,
        ports=what.ports,
        vllm=what.vllm,
    )
    with Services(site, note) as services:
        ready(services, token, film)
        services.watch()


def _exported(what: Everything, film: Footage, note: Note) -> Path:
    out, digest = what.folder / EXPORTED, policy_digest(what.policy)
    if (out / EXPORT).is_file() and read_export(out).policy == digest:
        return out
    sample = Sample(film.segments, lambda segment: what.segments / segment.clip, film.frames_of, what.profile)
    done = export_policy(
        what.policy, digest, out, greedy_check(what.policy, digest, sample, serving_python(what.serving))
    )
    assert done.checked is not None
    note(f"policy {digest[:12]} exported; vLLM wrote the same {done.checked.tokens} greedy tokens as transformers")
    return out


def _token(store: Store, environment: str, path: Path) -> str:
    """The token in `path` if it is good for the environment, else a new one, which only this user may read there."""
    if path.is_file():
        known = path.read_text(encoding="utf-8").strip()
        if Tokens(store, lambda: 0.0).environment_of(known) == environment:
            return known
    token = create_token(store, environment, BY, datetime.now(UTC))
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(f"{token}\n", encoding="utf-8")
    return token
