"""One environment's stream is erased; another's of the same name, and what names no environment, stays."""

from erasure_parts import Site
from erasure_texts import CONTEXTS, OTHERS, OURS

from taskmem.erasure import tombstones
from taskmem.feedback.collection import scoped, tombstone_of
from taskmem.records import FeedbackEvent, read_records
from taskmem.store import open_store


def streams(site: Site, environment: str) -> set[str]:
    return {event.stream for event in read_records(site.events / f"{environment}.jsonl", FeedbackEvent)}


def test_only_what_names_the_environment_goes(site: Site) -> None:
    said = site.erase(f"door/{OURS}")
    store = open_store(site.store)
    assert tombstones(store) == {tombstone_of("stream", scoped("door", OURS))}
    assert (streams(site, "door"), streams(site, "yard")) == ({OTHERS}, {OURS, OTHERS})
    assert said.adapters == ("door@v1",)
    assert any(
        line.startswith(f"segments, memories and candidates of streams called {OURS}") for line in said.remaining
    )
    kept = [key.split("/")[3] for key in store.list("rollouts/")]
    assert (kept.count(OURS), kept.count(OTHERS)) == (CONTEXTS, CONTEXTS)
    # its adapters are made anew without it, and nobody else's feedback is touched
    erased = tombstones(store)
    assert site.collected("door", erased) == ["q2", "q4", "q5", "q7"]
    assert site.collected("yard", erased) == ["q6", "q7"]
    assert site.erase(f"door/{OURS}").again
    assert (site.fresh_clone("fresh") / "shared" / "segments" / "clips" / OURS).is_dir()
