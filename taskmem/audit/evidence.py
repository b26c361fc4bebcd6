"""What an adapter was trained on and what that did: pairs, judges, feedback, events and influence, from DVC's data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskmem.audit.data import Data, Tracked, tracked_by
from taskmem.audit.links import Link, Problem, compared
from taskmem.audit.recorded import IN_LINEAGE, Recorded
from taskmem.audit.registered import MANIFEST
from taskmem.errors import UserError
from taskmem.feedback import Collection, PartsWatermark, read_collection
from taskmem.feedback.kept import EVENTS, KeptParts
from taskmem.files import canonical_json, sha256_bytes
from taskmem.records import Comparison, FeedbackEvent, Judge, Preference, read_json, read_records
from taskmem.registry import Manifest
from taskmem.registry.manifest import FILES

PAIRS, JUDGES, FEEDBACK, INFLUENCE = "pairs", "judges", "feedback", "influence"
PREFERENCES_FILE, COMPARISONS_FILE, INFLUENCE_FILE = "preferences.jsonl", "comparisons.jsonl", "influence.json"
LEADING = 5
KEPT = ("preferences", "feedback", EVENTS, "adapter")
"""What is fetched of an environment's folder."""


@dataclass(frozen=True)
class Part:
    """One tracked thing: what is wrong with it by path, and where its sound files lie; None where nothing is known of it."""

    path: str
    tracked: Tracked | None
    problems: Mapping[str, Problem]
    at: Path | None

    def of(self, *names: str) -> list[Problem]:
        """The problems with these files of it, or with its list of files."""
        paths = {self.path, *(f"{self.path}/{name}" for name in names)}
        return [problem for path, problem in self.problems.items() if path in paths]

    def besides(self, *names: str) -> list[Problem]:
        """The problems with it but for these files."""
        paths = {f"{self.path}/{name}" for name in names}
        return [problem for path, problem in self.problems.items() if path not in paths]

    @property
    def whole(self) -> Path | None:
        """Where it lies, if nothing is wrong with it."""
        return None if self.problems else self.at


class Evidence:
    """The data of a recorded version, fetched through `data` and laid below `out`."""

    def __init__(self, recorded: Recorded, data: Data, out: Path, kept: Sequence[str] = KEPT) -> None:
        self._recorded, self._data = recorded, data
        commit, place = recorded.commit, recorded.place
        found = {name: tracked_by(recorded.history, commit, place, name) for name in kept}
        data.fetch([tracked for tracked in found.values() if tracked])
        self._parts = {name: self._part(name, tracked, out / name) for name, tracked in found.items()}

    def _part(self, name: str, tracked: Tracked | None, at: Path) -> Part:
        path = f"{self._recorded.place}/{name}"
        if tracked is None:
            where = f"{path} of {self._recorded.where}"
            return Part(path, None, {path: Problem("missing", where, "the run has not recorded it")}, None)
        problems = self._data.problems(tracked)
        return Part(path, tracked, problems, None if path in problems else self._data.lay(tracked, at))

    def part(self, name: str) -> Part:
        """What is known of one thing of the environment's folder."""
        return self._parts[name]

    def links(self, manifest: Manifest) -> list[Link]:
        """Every link from the adapter's training back to the events that people left."""
        return [
            self.pairs(manifest),
            self.judges(manifest),
            self.feedback(manifest),
            self.events(),
            *self.adapter(manifest),
            self.influence(),
        ]

    def pairs(self, manifest: Manifest) -> Link:
        """The preference pairs, against the manifest."""
        part = self.part("preferences")
        found = self._found(part, PREFERENCES_FILE)
        facts: dict[str, Any] = {}
        problems = part.besides(COMPARISONS_FILE)
        if part.at is not None and found == manifest.pairs:
            facts, problems = _read(_pair_facts, part, problems)
        return compared(
            PAIRS, self._where("preferences", PREFERENCES_FILE), "the manifest", manifest.pairs, found, facts,
            (JUDGES, FEEDBACK), problems, "not the pairs that the adapter was trained on",
        )  # fmt: skip

    def judges(self, manifest: Manifest) -> Link:
        """The judges who compared, against the manifest."""
        part = self.part("preferences")
        problems, found = part.of(COMPARISONS_FILE), None
        known: list[Judge] = []
        if not problems:
            known, problems = _read(_judges, part, problems, [])
            found = _digest_of(known)
        facts = {"judges": [judge.model_dump(mode="json") for judge in manifest.judges]}
        return compared(
            JUDGES, self._where("preferences", COMPARISONS_FILE), "the manifest", _digest_of(manifest.judges), found, facts,
            problems=problems, other="not the judges whom the manifest names",
        )  # fmt: skip

    def feedback(self, manifest: Manifest) -> Link:
        """The ids of the feedback, against the manifest."""
        part, found = self.part("feedback"), None
        facts: dict[str, Any] = {}
        problems = list(part.problems.values())
        if not problems:
            collection, problems = _read(read_collection, part, problems)
            if collection:
                ids = question_ids(collection, manifest.environment)
                found = sha256_bytes(canonical_json(ids))
                facts = _feedback_facts(collection, manifest.environment, ids)
        return compared(
            FEEDBACK, self._where("feedback"), "the manifest", manifest.feedback, found, facts, (EVENTS,), problems,
            "not the ids of the feedback that the manifest names",
        )  # fmt: skip

    def events(self) -> Link:
        """The environment's log as the run saw it, against dvc's digest and the collection's watermark."""
        part = self.part(EVENTS)
        problems = list(part.problems.values())
        facts: dict[str, Any] = {}
        expected = part.tracked.md5 if part.tracked else None
        found = expected if part.whole is not None else None
        if not problems:
            facts, problems = _read(self._event_facts, part, problems)
        return compared(EVENTS, self._where(EVENTS), "dvc", expected, found, facts, problems=problems)

    def adapter(self, manifest: Manifest) -> list[Link]:
        """The adapter's files as the run made them, against the manifest."""
        part = self.part("adapter")
        return [
            compared(
                f"{name} {IN_LINEAGE}",
                self._where("adapter", name),
                "the manifest",
                expected,
                self._found(part, name),
                rests_on=(MANIFEST,),
                problems=part.of(name),
                other="not the bytes that were published",
            )
            for name, expected in manifest.files.by_name().items()
        ]

    def influence(self) -> Link:
        """Who moved the adapter; of an adapter whose pairs name no source there is nothing to say."""
        part = self.part("adapter")
        problems, expected, found = part.besides(*FILES), None, None
        facts: dict[str, Any] = {}
        if part.at is not None and part.tracked is not None:
            items = {item.name: item.md5 for item in self._data.items(part.tracked)}
            expected = items.get(INFLUENCE_FILE)
            found = None if problems else expected
        if not problems and expected is not None:
            facts, problems = _read(influence_facts, part, problems)
        elif not problems:
            facts = {"sources": "none is named"}
        return compared(
            INFLUENCE, self._where("adapter", INFLUENCE_FILE), "dvc", expected, found, facts, (PAIRS,), problems
        )

    def texts(self, environment: str) -> dict[str, str]:
        """The texts of the questions by id, none if the feedback is not whole."""
        at = self.part("feedback").whole
        if at is None:
            return {}
        return {question.id: question.text for question in read_collection(at).questions.get(environment, ())}

    def _event_facts(self, at: Path) -> dict[str, Any]:
        events = _known_events(at)
        feedback = self.part("feedback").whole
        if feedback is not None:
            _check_watermark(at, read_collection(feedback))
        times = sorted(event.time for event in events)
        span = {"from": times[0].isoformat(), "to": times[-1].isoformat()} if times else {}
        outcomes = {kind: sum(e.outcome == kind for e in events) for kind in ("correct", "incorrect", "unknown")}
        return {"events": len(events), **span, "outcomes": outcomes, "sources": len({event.source for event in events})}

    def _found(self, part: Part, name: str) -> str | None:
        """The SHA-256 of a file as it came, damaged or not."""
        return None if part.tracked is None or part.path in part.problems else self._data.sha256(part.tracked, name)

    def _where(self, *names: str) -> str:
        return "/".join((self._recorded.place, *names))


def _read(
    read: Callable[[Path], Any], part: Part, problems: list[Problem], default: Any = None
) -> tuple[Any, list[Problem]]:
    """What `read` gives of a whole part; a file that is none of ours is a problem, not the end of the audit."""
    assert part.at is not None
    try:
        return read(part.at), problems
    except UserError as error:
        why = str(error).replace(f"{part.at}", part.path)
        return ({} if default is None else default), [*problems, Problem("damaged", part.path, why)]


def _pair_facts(at: Path) -> dict[str, Any]:
    pairs = read_records(at / PREFERENCES_FILE, Preference)
    questions = sorted({question for pair in pairs for question in pair.questions})
    sources = sorted({source for pair in pairs for source in pair.sources})
    return {
        "pairs": len(pairs),
        "contexts": len({pair.context for pair in pairs}),
        "questions": questions,
        "sources": sources,
    }


def _judges(at: Path) -> list[Judge]:
    known = {c.judge.model_dump_json(): c.judge for c in read_records(at / COMPARISONS_FILE, Comparison)}
    return [known[key] for key in sorted(known)]


def _digest_of(judges: Sequence[Judge]) -> str:
    return sha256_bytes(canonical_json([judge.model_dump(mode="json") for judge in judges]))


def question_ids(collection: Collection, environment: str) -> list[str]:
    """The ids of an environment's feedback, in its order: what the manifest's digest is of."""
    return [question.id for question in collection.questions.get(environment, ())]


def _feedback_facts(collection: Collection, environment: str, ids: Sequence[str]) -> dict[str, Any]:
    sources = collection.sources.get(environment, {})
    return {
        "count": len(ids),
        "ids": list(ids),
        "sources": sorted({source for named in sources.values() for source in named}),
        "refused": len(collection.refused),
    }


def _known_events(at: Path) -> list[FeedbackEvent]:
    """The lines that are events: a log holds whatever was sent."""
    events = []
    for line in at.read_bytes().splitlines():
        try:
            events.append(FeedbackEvent.model_validate_json(line))
        except ValueError:
            continue
    return events


def _check_watermark(at: Path, collection: Collection) -> None:
    mark = collection.watermark
    if isinstance(mark, PartsWatermark):
        same = KeptParts(at).end == mark
    else:
        with at.open("rb") as handle:
            same = sha256_bytes(handle.read(mark.offset)) == mark.sha256
    if not same:
        raise UserError(f"{at}: not the log that the feedback was collected from; restore it from a backup")


def influence_facts(adapter: Path) -> dict[str, Any]:
    """Who moved the adapter most, and who pulled against the rest: sources by hash with their part in the training."""
    # torch comes with it
    from taskmem.phase_two.influence import leading  # noqa: PLC0415

    document = read_json(adapter / INFLUENCE_FILE)
    try:
        sources = {str(name): dict(entry) for name, entry in document["sources"].items()}
        most = leading(sources, LEADING)
        against = [name for name, entry in sources.items() if _pulled(entry) < 0]
    except (KeyError, TypeError, AttributeError, ValueError):
        raise UserError(f"{adapter / INFLUENCE_FILE}: not as Phase Two writes it; restore it from a backup") from None
    parts = [{"source": name, "part": round(part, 4)} for name, part in most]
    return {"sources": len(sources), "leading": parts, "against": sorted(against)}


def _pulled(entry: Mapping[str, Any]) -> float:
    """Below zero where a source pulled against the rest; adapters of before that was measured have a share alone."""
    return float(entry["agreement"] if "agreement" in entry else entry["share"])
