"""Runs that wait for people, over real HTTP: forms, pauses, streams. The whole embedded service behind it."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from flowledger.dev import Embedded, start_embedded
from libs.settings import Settings
from tests.api_world import Sse, names, until
from tests.documents import document, edges, end, human_input, start, template

ASK = document(
    [
        start("q"),
        template("draft", "{{ q }}!", q="start.q"),
        human_input("ask", form_content="{{#draft.output#}}\n{{#$output.note#}}"),
        end("yes", note="ask.note"),
        end("no"),
    ],
    edges("start > draft > ask", "ask[ok] > yes", "ask[no] > no"),
)
SHORT = document(
    [start("q"), human_input("ask", timeout=0.5 / 3600), end("late", how="ask.__action_id")],
    edges("start > ask[__timeout] > late"),
)
TWO = document(
    [start("q"), human_input("one"), human_input("two"), end(a="one.note", b="two.note")],
    edges("start > one[ok] > end", "start > two[ok] > end"),
)
PICTURE = document(
    [
        start("q"),
        human_input(
            "ask",
            "ok",
            inputs=[{"type": "file", "output_variable_name": "picture", "allowed_file_types": ["image"]}],
        ),
        end(picture="ask.picture"),
    ],
    edges("start > ask[ok] > end"),
)
STEPS = document(
    [start("q"), human_input("ask"), template("t", "x"), end(out="t.output")], edges("start > ask[ok] > t > end")
)


class Api:
    """What a client of one app does."""

    def __init__(self, instance: Embedded) -> None:
        self.http = httpx.Client(base_url=instance.url, timeout=20, trust_env=False, verify=False)
        self.admin = {"Authorization": f"Bearer {instance.admin_token}"}
        self.keys: dict[str, dict[str, str]] = {}

    def key(self, text: str) -> dict[str, str]:
        if text not in self.keys:
            made = self.http.post("/v1/apps/import", content=text, headers=self.admin).json()
            self.keys[text] = {"Authorization": f"Bearer {made['api_key']}"}
        return self.keys[text]

    def start(self, text: str = ASK) -> dict[str, Any]:
        """The blocking answer."""
        body = {"inputs": {"q": "tea"}, "user": "u1", "response_mode": "blocking"}
        answer = self.http.post("/v1/workflows/run", json=body, headers=self.key(text))
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def detail(self, run_id: str, text: str = ASK) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get(f"/v1/workflows/run/{run_id}", headers=self.key(text)).json()
        return found

    def form(self, token: str, text: str = ASK) -> httpx.Response:
        return self.http.get(f"/v1/form/human_input/{token}", headers=self.key(text))

    def submit(self, token: str, text: str = ASK, **body: Any) -> httpx.Response:
        given = {"inputs": {"note": "fine"}, "action": "ok", "user": "u2"} | body
        return self.http.post(f"/v1/form/human_input/{token}", json=given, headers=self.key(text))

    def ours(self, run_id: str, verb: str, **body: Any) -> httpx.Response:
        return self.http.post(f"/v1/runs/{run_id}/{verb}", json=body, headers=self.admin)

    def state(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get(f"/v1/runs/{run_id}", headers=self.admin).json()
        return found

    @contextmanager
    def stream(self, method: str, path: str, headers: dict[str, str], **more: Any) -> Iterator[Sse]:
        with self.http.stream(method, path, headers=headers, **more) as response:
            yield Sse(response)

    @contextmanager
    def events(self, run_id: str, text: str = ASK, last: str | None = None, **query: str) -> Iterator[Sse]:
        headers = self.key(text) | ({} if last is None else {"Last-Event-ID": last})
        params = {"user": "u1"} | query
        with self.stream("GET", f"/v1/workflow/{run_id}/events", headers, params=params) as stream:
            yield stream


def token_of(answer: dict[str, Any]) -> str:
    return str(answer["data"]["reasons"][0]["form_token"])


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder: Path = tmp_path_factory.mktemp("forms")
    instance = start_embedded(folder, "127.0.0.1", 0, Settings(models="offline", data=folder))
    made = Api(instance)
    yield made
    made.http.close()
    instance.stop()


def test_a_blocking_start_of_a_run_that_waits_is_answered_with_what_it_waits_for(api: Api) -> None:
    answer = api.start()
    data = answer["data"]
    assert (data["status"], data["outputs"], data["error"], data["finished_at"]) == ("paused", {}, None, None)
    assert (data["paused_nodes"], data["total_steps"]) == (["ask"], 3)
    (reason,) = data["reasons"]
    assert reason["TYPE"] == reason["type"] == "human_input_required"
    assert (reason["node_id"], reason["node_title"]) == ("ask", "Ask")
    assert reason["form_content"] == "tea!\n{{#$output.note#}}"
    assert [action["id"] for action in reason["actions"]] == ["ok", "no"]
    assert reason["display_in_ui"] is True
    assert 36 * 3600 - 60 < reason["expiration_time"] - data["created_at"] <= 36 * 3600
    detail = api.detail(answer["workflow_run_id"])
    assert (detail["status"], detail["outputs"], detail["finished_at"]) == ("paused", {}, None)
    done = ("total_steps", "total_tokens", "elapsed_time")
    for told in (detail, api.state(answer["workflow_run_id"])):  # no less than was said already
        assert [told[name] for name in done] == [data[name] for name in done]


def test_a_form_is_shown_answered_once_and_the_run_goes_on(api: Api) -> None:
    answer = api.start()
    token, run_id = token_of(answer), answer["workflow_run_id"]
    form = api.form(token)
    assert form.status_code == 200
    assert form.json() == {
        "form_content": "tea!\n{{#$output.note#}}",
        "inputs": [{"type": "paragraph", "output_variable_name": "note", "default": None}],
        "resolved_default_values": {},
        "user_actions": [
            {"id": "ok", "title": "Ok", "button_style": "default"},
            {"id": "no", "title": "No", "button_style": "default"},
        ],
        "expiration_time": answer["data"]["reasons"][0]["expiration_time"],
    }
    submitted = api.submit(token)
    assert (submitted.status_code, submitted.json()) == (200, {})
    until(lambda: api.detail(run_id)["status"] == "succeeded")
    assert api.detail(run_id)["outputs"] == {"note": "fine"}
    for again in (api.submit(token), api.form(token)):
        assert (again.status_code, again.json()["code"]) == (412, "human_input_form_submitted")


def test_of_many_submissions_at_once_one_counts(api: Api) -> None:
    answer = api.start()
    token = token_of(answer)

    def submit(number: int) -> httpx.Response:
        body = {"inputs": {"note": str(number)}, "action": "ok", "user": "u2"}
        with httpx.Client(base_url=api.http.base_url, timeout=20, trust_env=False, verify=False) as own:
            return own.post(f"/v1/form/human_input/{token}", json=body, headers=api.key(ASK))

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(submit, range(8)))
    assert sorted(each.status_code for each in answers) == [200, *[412] * 7]
    winner = next(number for number, each in enumerate(answers) if each.status_code == 200)
    until(lambda: api.detail(answer["workflow_run_id"])["outputs"] == {"note": str(winner)})


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"action": "maybe"}, 400, "invalid_form_data"),
        ({"inputs": {}}, 400, "invalid_form_data"),
        ({"inputs": {"note": 3}}, 400, "invalid_form_data"),
        ({"action": None}, 400, "invalid_param"),
        ({"inputs": []}, 400, "invalid_param"),
        ({"user": ""}, 400, "invalid_param"),
        ({"inputs": {"note": "x" * 300_000}}, 413, "request_entity_too_large"),
    ],
)
def test_a_submission_that_does_not_fit_leaves_the_form_open(
    api: Api, body: dict[str, Any], status: int, code: str
) -> None:
    token = token_of(api.start())
    answer = api.submit(token, **body)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert api.form(token).status_code == 200


def uploaded(api: Api, name: str, kind: str, mime_type: str, headers: dict[str, str], **more: Any) -> dict[str, Any]:
    """A mention of a file, given as `kind`."""
    made = api.http.post("/v1/files/upload", headers=headers, files={"file": (name, b"content", mime_type)}, **more)
    assert made.status_code == 201, made.text
    return {"type": kind, "transfer_method": "local_file", "upload_file_id": made.json()["id"]}


def test_a_form_takes_the_files_that_its_field_allows(api: Api) -> None:
    answer = api.start(PICTURE)
    token = token_of(answer)
    of_user = {"data": {"user": "u2"}}
    report = uploaded(api, "a.pdf", "document", "application/pdf", api.key(PICTURE), **of_user)
    link = {"type": "document", "transfer_method": "remote_url", "url": "https://files.example/a.pdf"}
    for file in (report, report | {"type": "image"}, link, link | {"type": "image"}):
        refused = api.submit(token, PICTURE, inputs={"picture": file})
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_form_data"), refused.text
        assert "picture: " in refused.json()["message"]
    fitting = uploaded(api, "a.png", "image", "image/png", api.key(PICTURE), **of_user)
    assert api.submit(token, PICTURE, inputs={"picture": fitting}).status_code == 200
    until(lambda: api.detail(answer["workflow_run_id"], PICTURE)["status"] == "succeeded")
    outputs = api.detail(answer["workflow_run_id"], PICTURE)["outputs"]
    assert outputs["picture"]["filename"] == "a.png"


def test_a_form_of_another_app_or_of_none_does_not_exist(api: Api) -> None:
    token = token_of(api.start())
    changed = token[:-2] + ("aa" if token[-2:] != "aa" else "bb")
    for given, text in ((token, TWO), (changed, ASK), ("nonsense", ASK), ("%00", ASK)):
        for answer in (api.form(given, text), api.submit(given, text)):
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), answer.text


def test_a_form_without_a_key_is_not_shown(api: Api) -> None:
    token = token_of(api.start())
    assert api.http.get(f"/v1/form/human_input/{token}").status_code == 401
    assert api.form(token).status_code == 200


def test_a_form_that_nobody_answers_expires_and_the_run_takes_that_branch(api: Api) -> None:
    answer = api.start(SHORT)
    token, run_id = token_of(answer), answer["workflow_run_id"]
    until(lambda: api.detail(run_id, SHORT)["status"] == "succeeded")
    assert api.detail(run_id, SHORT)["outputs"] == {"how": "__timeout"}
    for closed in (api.form(token, SHORT), api.submit(token, SHORT)):
        assert (closed.status_code, closed.json()["code"]) == (412, "human_input_form_expired")
    with api.events(run_id, SHORT, last="0") as stream:
        frames = stream.rest()
    timeout = next(frame.data["data"] for frame in frames if frame.name == "human_input_form_timeout")
    assert (timeout["node_id"], timeout["node_title"]) == ("ask", "Ask")
    assert timeout["expiration_time"] == answer["data"]["reasons"][0]["expiration_time"]


def test_the_form_of_a_run_that_was_stopped_is_closed(api: Api) -> None:
    answer = api.start()
    assert api.ours(answer["workflow_run_id"], "stop").status_code == 200
    until(lambda: api.detail(answer["workflow_run_id"])["status"] == "stopped")
    closed = api.submit(token_of(answer))
    assert (closed.status_code, closed.json()["code"]) == (412, "human_input_form_expired")


# --- streams ---


def _streamed(api: Api, text: str = ASK) -> tuple[str, list[Any]]:
    body = {"inputs": {"q": "tea"}, "user": "u1", "response_mode": "streaming"}
    with api.stream("POST", "/v1/workflows/run", api.key(text), json=body) as stream:
        return stream.run_id, stream.rest()


def test_a_stream_ends_when_the_run_is_paused(api: Api) -> None:
    _, frames = _streamed(api)
    assert names(frames)[-3:] == ["node_started", "human_input_required", "workflow_paused"]
    required, paused = frames[-2].data["data"], frames[-1].data["data"]
    (reason,) = paused["reasons"]
    assert {name: value for name, value in reason.items() if name.lower() != "type"} == required
    assert (paused["status"], paused["outputs"], paused["paused_nodes"]) == ("paused", {}, ["ask"])
    assert frames[-1].id is not None


def test_who_attaches_with_a_snapshot_behind_the_submission_follows_the_run_to_its_end(api: Api) -> None:
    run_id, frames = _streamed(api)
    assert api.submit(frames[-2].data["data"]["form_token"]).status_code == 200
    with api.events(run_id, include_state_snapshot="true") as stream:
        rest = stream.rest()
    assert names(rest)[-1] == "workflow_finished"
    with api.events(run_id, last=frames[-1].id) as stream:
        behind = stream.rest()
    assert names(behind) == [
        "workflow_started", "human_input_form_filled", "text_chunk", "node_finished", "node_started", "node_finished",
        "workflow_finished",
    ]  # fmt: skip
    assert behind[0].data["data"]["reason"] == "resumption"
    assert behind[1].data["data"] == {
        "node_id": "ask",
        "node_title": "Ask",
        "rendered_content": "tea!\nfine",
        "action_id": "ok",
        "action_text": "Ok",
        "submitted_data": {"note": "fine"},
    }
    with api.events(run_id, last="0") as stream:
        whole = stream.rest()
    assert whole == [*frames, *behind]


def test_a_snapshot_of_a_paused_run_shows_its_form_and_ends_unless_the_client_wants_to_wait(api: Api) -> None:
    run_id, _ = _streamed(api)
    with api.events(run_id, include_state_snapshot="true") as stream:
        frames = stream.rest()
    assert names(frames)[-2:] == ["human_input_required", "workflow_paused"]
    token = frames[-2].data["data"]["form_token"]
    with api.events(run_id, include_state_snapshot="true", continue_on_pause="true") as stream:
        begun = stream.take(len(frames))
        assert names(begun) == names(frames)
        assert api.submit(token).status_code == 200
        rest = stream.rest()
    assert names(rest)[0] == "workflow_started"
    assert names(rest)[-1] == "workflow_finished"


def test_resuming_at_every_place_of_a_paused_run_ends_at_the_pause(api: Api) -> None:
    run_id, frames = _streamed(api)
    for number, frame in enumerate(frames[:-1]):
        if frame.id is not None:
            with api.events(run_id, last=frame.id) as stream:
                assert stream.rest() == frames[number + 1 :]


def test_more_text_than_there_is_is_put_right_before_the_pause(api: Api) -> None:
    """Behind it nobody reads, and the stream would not end."""
    run_id, frames = _streamed(api)
    assert frames[1].id is not None
    with api.events(run_id, last=f"{frames[1].id}.99") as stream:
        rest = stream.rest()
    assert names(rest)[-1] == "workflow_paused"
    assert names(rest).count("text_replace") == 1
    assert [frame.id for frame in rest if frame.name == "text_replace"] == [None]


def test_a_stream_that_waits_for_people_goes_through_all_pauses(api: Api) -> None:
    run_id, frames = _streamed(api, TWO)
    tokens = [frame.data["data"]["form_token"] for frame in frames if frame.name == "human_input_required"]
    with api.events(run_id, TWO, last="0", continue_on_pause="true") as stream:
        assert names(stream.take(len(frames)))[-1] == "workflow_paused"
        for token in tokens:
            assert api.submit(token, TWO).status_code == 200
        rest = stream.rest()
    assert names(rest).count("human_input_form_filled") == 2
    assert names(rest)[-1] == "workflow_finished"


# --- our own paths ---


def test_a_run_is_paused_on_request_and_resumed(api: Api) -> None:
    answer = api.start(STEPS)
    run_id, token = answer["workflow_run_id"], token_of(answer)
    paused = api.ours(run_id, "pause", reason="maintenance")
    assert (paused.status_code, paused.json()["pause_requested"]) == (200, True)
    assert api.ours(run_id, "pause").json()["pause_requested"] is False
    assert api.submit(token, STEPS).status_code == 200
    waits = api.state(run_id)["waiting_for"]
    assert {"kind": "pause", "reason": "maintenance"} in waits
    assert api.state(run_id)["status"] == "paused"
    resumed = api.ours(run_id, "resume")
    assert (resumed.status_code, resumed.json()["resumed"]) == (200, "pause")
    until(lambda: api.state(run_id)["status"] == "succeeded")
    for verb in ("pause", "resume"):
        over = api.ours(run_id, verb)
        assert (over.status_code, over.json()["code"]) == (409, "not_running")


def test_a_run_that_nobody_paused_cannot_be_resumed_without_an_answer(api: Api) -> None:
    run_id = api.start()["workflow_run_id"]
    refused = api.ours(run_id, "resume")
    assert (refused.status_code, refused.json()["code"]) == (409, "form_required")
    assert "ok, no" in refused.json()["message"]


def test_the_forms_of_a_run_are_answered_by_their_node(api: Api) -> None:
    run_id = api.start(TWO)["workflow_run_id"]
    waits = [one for one in api.state(run_id)["waiting_for"] if one["kind"] == "form"]
    assert {one["node_id"] for one in waits} == {"one", "two"}
    assert api.state(run_id)["nodes"]["one"]["status"] == "paused"
    several = api.ours(run_id, "resume", action="ok", inputs={"note": "x"})
    assert (several.status_code, several.json()["code"]) == (400, "invalid_param")
    for one in waits:
        answered = api.ours(run_id, "resume", form=one["node_id"], action="ok", inputs={"note": one["node_id"]})
        assert (answered.status_code, answered.json()["resumed"]) == (200, "form"), answered.text
    until(lambda: api.state(run_id)["status"] == "succeeded")
    assert api.state(run_id)["outputs"] == {"a": "one", "b": "two"}
    assert api.state(run_id)["waiting_for"] == []


def test_lists_show_paused_runs(api: Api) -> None:
    run_id = api.start()["workflow_run_id"]

    def listed() -> bool:
        found = api.http.get("/v1/runs", params={"status": "paused"}, headers=api.admin).json()["data"]
        return [run["total_steps"] for run in found if run["id"] == run_id] == [3]

    until(listed)


def test_a_repeat_of_a_blocking_start_attaches_to_the_paused_run(api: Api) -> None:
    body = {"inputs": {"q": "tea"}, "user": "u1", "response_mode": "blocking"}
    headers = api.key(ASK) | {"Idempotency-Key": "order-1"}
    first, second = (api.http.post("/v1/workflows/run", json=body, headers=headers).json() for _ in range(2))
    assert first == second
    assert first["data"]["status"] == "paused"


def test_a_large_form_comes_back_whole(api: Api) -> None:
    text = document(
        [start("q"), template("long", "{{ q }}" + "x" * 200_000, q="start.q"),
         human_input("ask", form_content="{{#long.output#}}"), end("yes", note="ask.note")],
        edges("start > long > ask[ok] > yes"),
    )  # fmt: skip
    answer = api.start(text)
    assert len(answer["data"]["reasons"][0]["form_content"]) == 200_003
    token = token_of(answer)
    assert len(api.form(token, text).json()["form_content"]) == 200_003
    assert api.submit(token, text).status_code == 200
    until(lambda: api.detail(answer["workflow_run_id"], text)["status"] == "succeeded")


def test_the_history_says_what_happened(api: Api) -> None:
    answer = api.start()
    api.submit(token_of(answer))
    until(lambda: api.detail(answer["workflow_run_id"])["status"] == "succeeded")
    lines = api.http.get(f"/v1/runs/{answer['workflow_run_id']}/history", headers=api.admin).text.splitlines()
    types = [json.loads(line)["type"] for line in lines]
    at = types.index("FormOpened")
    assert types[at : at + 5] == ["FormOpened", "RunPaused", "FormSubmitted", "RunResumed", "NodeSucceeded"]
