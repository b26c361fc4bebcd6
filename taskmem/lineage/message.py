"""What a commit and a tag of the lineage repository say: a sentence, and trailers that a program reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taskmem.files import sha256_bytes
from taskmem.lineage.outcome import Outcome, counts
from taskmem.records import one_line
from taskmem.registry import Manifest

RUN, MANIFEST = "Run", "Manifest"


@dataclass(frozen=True)
class Published:
    """What an environment's run left in the registry: the version, its manifest's bytes, and whether it was promoted."""

    manifest: Manifest
    document: bytes
    promoted: bool

    @property
    def tag(self) -> str:
        """The name of the version's tag: environment@version, a second dot in a row escaped, for git allows none."""
        return self.manifest.name.replace("..", ".%2e")


def commit_message(
    run: str,
    record: Mapping[str, Any],
    outcomes: Sequence[Outcome],
    published: Mapping[str, Published],
    verdicts: Mapping[str, str],
) -> str:
    """The message of a run's commit; `verdicts` has the SHA-256 of each, and both mappings go by adapter."""
    of = {outcome.name: outcome.environment for outcome in outcomes}
    lines = [(RUN, run), ("Commit", record["commit"]), ("Image", record["image"])]
    lines += [("Environment", " ".join(filter(None, (o.name, o.status, o.version)))) for o in outcomes]
    lines += [("Promoted", version.manifest.name) for version in published.values() if version.promoted]
    lines += [("Verdict", f"{of[name]} {digest}") for name, digest in verdicts.items()]
    ended = ", ".join(f"{number} {status}" for status, number in counts(outcomes).items() if number)
    return _message(f"Run {run}: {ended or 'no environment'}", lines)


def tag_message(run: str, published: Published) -> str:
    """The message of a promoted version's tag."""
    return _message(published.manifest.name, [(RUN, run), (MANIFEST, sha256_bytes(published.document))])


def trailer(message: str, key: str) -> str | None:
    """The value of a trailer in a message that this module wrote."""
    prefix = f"{key}: "
    return next((line.removeprefix(prefix) for line in message.splitlines() if line.startswith(prefix)), None)


def _message(subject: str, trailers: Sequence[tuple[str, str]]) -> str:
    return "\n".join([subject, "", *(f"{key}: {one_line(str(value))}" for key, value in trailers)]) + "\n"
