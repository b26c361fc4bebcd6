"""From a request's id to the adapter that answered it, and to all that this rests on."""

import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from audit_parts import IMAGE, NOW, Place, broken, objects_kept

from taskmem.audit.links import Chain
from taskmem.audit.request import audit_request, find_response
from taskmem.errors import UserError
from taskmem.gateway.responses import ResponseLog
from taskmem.records import Response, write_records
from taskmem.registry import set_policy
from taskmem.registry.versions import read_manifest


def response(place: Place, number: int = 1, **changes: Any) -> Response:
    """An answer of door@v2, a day after it was promoted."""
    made = read_manifest(place.store, "door", "v2")
    fields: dict[str, Any] = {
        "id": f"request-{number}",
        "time": NOW + timedelta(days=3),
        "environment": "door",
        "policy": made.policy,
        "adapter": "door@v2",
        "adapter_digest": made.files.adapter_model,
        "image": IMAGE,
        "stream": "s0",
        "question": "q1",
        "memories": ("s0:3", "s0:4"),
    }
    return Response(**{**fields, **changes})


def ask(place: Place, tmp_path: Path, responses: Sequence[Response], id_: str = "request-1") -> Chain:
    write_records(tmp_path / "responses.jsonl", responses)
    return audit_request(place.store, place.lineage, id_, [tmp_path], tmp_path / "work")


def test_a_request_leads_to_the_adapter_that_answered_it_and_its_whole_chain(place: Place, tmp_path: Path) -> None:
    chain = ask(place, tmp_path, [response(place, number) for number in (7, 1, 8)])
    assert (chain.subject, broken(chain), chain.notes) == ("request request-1", [], ())
    link = chain.links[0]
    assert (link.name, link.where) == ("response", f"{tmp_path / 'responses.jsonl'}:2")
    assert link.expected == link.found == read_manifest(place.store, "door", "v2").files.adapter_model
    assert (link.facts["adapter"], link.facts["image"], link.facts["memories"]) == ("door@v2", IMAGE, ["s0:3", "s0:4"])
    assert chain.link("pairs") is not None


def test_an_answer_without_adapter_shows_the_policy_and_says_so(place: Place, tmp_path: Path) -> None:
    chain = ask(place, tmp_path, [response(place, adapter="none", adapter_digest=None)])
    assert [link.name for link in chain.links] == ["response", "policy"]
    assert broken(chain) == []
    assert chain.notes == ("this was the Phase One policy, without an adapter: no feedback shaped it",)
    policy = chain.links[1]
    assert policy.where.startswith("run.json of commit ")


def test_a_policy_that_the_registry_serves_is_known_by_its_log(place: Place, tmp_path: Path) -> None:
    with objects_kept(place):
        set_policy(place.store, "f" * 64, "Ada", NOW, None)
        chain = ask(place, tmp_path, [response(place, adapter="none", adapter_digest=None, policy="f" * 64)])
    assert broken(chain) == []
    assert (chain.links[1].where, chain.links[1].facts["by"]) == ("entry 1 of policies/log", "Ada")


def test_a_policy_that_nobody_knows_is_missing(place: Place, tmp_path: Path) -> None:
    chain = ask(place, tmp_path, [response(place, adapter="none", adapter_digest=None, policy="f" * 64)])
    assert broken(chain) == [("policy", "missing")]


def test_an_answer_that_other_bytes_gave_is_found_and_theirs_are_named(place: Place, tmp_path: Path) -> None:
    first = read_manifest(place.store, "door", "v1").files.adapter_model
    chain = ask(place, tmp_path, [response(place, adapter_digest=first)])
    assert broken(chain) == [("response", "damaged")]
    assert "served with other bytes than door@v2 has: those of door@v1" in chain.broken[0].line
    chain = ask(place, tmp_path / "again", [response(place, adapter_digest="e" * 64)])
    assert "no version has them" in chain.broken[0].line


def test_an_answer_of_another_policy_is_found(place: Place, tmp_path: Path) -> None:
    chain = ask(place, tmp_path, [response(place, policy="e" * 64)])
    assert broken(chain) == [("response", "damaged")]
    assert "door@v2 is of another policy than the one that answered" in chain.broken[0].line


def test_what_was_champion_then_is_told_where_it_was_another(place: Place, tmp_path: Path) -> None:
    early = ask(place, tmp_path, [response(place, time=NOW + timedelta(days=1, hours=1))])
    assert early.notes == ("by the log v1 was champion when the request was answered, not v2",)
    before = ask(place, tmp_path / "before", [response(place, time=NOW)])
    assert before.notes == ("by the log nothing was champion of door yet when the request was answered",)


def test_an_adapter_of_another_environment_is_told(place: Place, tmp_path: Path) -> None:
    chain = ask(place, tmp_path, [response(place, environment="room")])
    assert chain.notes == ("a request of environment room was answered with an adapter of door",)


def test_the_same_line_twice_is_one_answer_and_two_different_ones_are_a_mistake(place: Place, tmp_path: Path) -> None:
    one = response(place)
    write_records(tmp_path / "responses.jsonl", [one, one])
    assert find_response("request-1", [tmp_path]).response == one
    write_records(tmp_path / "more" / "responses-2.jsonl", [response(place, stream="s1")])
    with pytest.raises(UserError, match=r"responses\.jsonl:1 and .*say different things; one of both was changed"):
        find_response("request-1", [tmp_path / "responses.jsonl", tmp_path / "more"])


def test_a_request_that_is_in_no_log_is_a_mistake(place: Place, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"request request-9: in no response log of .*; give the logs of the time"):
        ask(place, tmp_path, [response(place, 1), response(place, 99)], "request-9")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no response log \(responses\*\.jsonl\) there"):
        find_response("request-1", [tmp_path / "empty"])
    with pytest.raises(UserError, match=r"cannot be read \(No such file"):
        find_response("request-1", [tmp_path / "gone.jsonl"])


def test_a_line_that_was_torn_is_a_mistake_with_its_place_and_others_do_no_harm(place: Place, tmp_path: Path) -> None:
    line = json.dumps(response(place).model_dump(mode="json"))
    (tmp_path / "responses.jsonl").write_text(f"not JSON\n{line[:-20]}\n")
    with pytest.raises(UserError, match=r"responses\.jsonl:2: Response"):
        find_response("request-1", [tmp_path])
    (tmp_path / "responses.jsonl").write_text(f"not JSON\n{line}\n")
    assert find_response("request-1", [tmp_path]).where.endswith(":2")


def test_the_log_that_services_write_is_searched_also_where_no_stream_was_named(place: Place, tmp_path: Path) -> None:
    unnamed = response(place, stream=None, question=None, memories=())
    with ResponseLog(tmp_path / "logs", "gateway-1") as log:
        log.append(response(place, 2))
        log.append(unnamed)
        chain = audit_request(place.store, place.lineage, "request-1", [tmp_path / "logs"], tmp_path / "work")
    assert broken(chain) == []
    assert chain.links[0].where.endswith("responses-gateway-1.jsonl:2")
    assert chain.links[0].facts["stream"] is None
