"""Forms at the console, with the whole embedded service: pause details, forms of runs, and forms of the draft."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from flowledger.dev import start_embedded
from libs.settings import Settings
from tests.api_world import until
from tests.integration.test_api_forms import ASK, PICTURE, Api, token_of, uploaded

NODE = "workflows/draft/human-input/nodes/ask/form"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder: Path = tmp_path_factory.mktemp("console-forms")
    instance = start_embedded(folder, "127.0.0.1", 0, Settings(models="offline", data=folder))
    made = Api(instance)
    yield made
    made.http.close()
    instance.stop()


def _draft(api: Api, document: str = ASK) -> str:
    """A new app with a draft; its path."""
    made = api.http.post("/console/api/apps", json={"name": "Drafted", "mode": "workflow"}, headers=api.admin).json()
    path = f"/console/api/apps/{made['id']}"
    body = {"graph": json.loads(document)["workflow"]["graph"], "features": {}}
    saved = api.http.post(f"{path}/workflows/draft", json=body, headers=api.admin)
    assert saved.status_code == 200, saved.text
    return path


def _post(api: Api, path: str, body: dict[str, Any]) -> httpx.Response:
    return api.http.post(path, json=body, headers=api.admin)


def test_pause_details_name_the_nodes_that_wait_and_where_they_are_answered(api: Api) -> None:
    answer = api.start()
    path = f"/console/api/workflow/{answer['workflow_run_id']}/pause-details"
    details = api.http.get(path, headers=api.admin).json()
    assert details["paused_at"].endswith("Z")
    (node,) = details["paused_nodes"]
    reason = answer["data"]["reasons"][0]
    assert node == {
        "node_id": "ask",
        "node_title": "Ask",
        "pause_type": {
            "type": "human_input",
            "form_id": reason["form_id"],
            "backstage_input_url": f"/v1/form/human_input/{reason['form_token']}",
        },
    }
    form = f"/console/api/form/human_input/{token_of(answer)}"
    assert api.http.get(form, headers=api.admin).json()["form_content"] == reason["form_content"]
    assert _post(api, form, {"inputs": {"note": "x"}, "action": "ok"}).json() == {}
    until(lambda: api.http.get(path, headers=api.admin).json() == {"paused_at": None, "paused_nodes": []})
    again = _post(api, form, {"inputs": {"note": "x"}, "action": "ok"})
    assert (again.status_code, again.json()["code"]) == (412, "human_input_form_submitted")


def test_pause_details_of_no_run_are_not_found(api: Api) -> None:
    unknown = "/console/api/workflow/00000000-0000-7000-8000-000000000009/pause-details"
    assert api.http.get(unknown, headers=api.admin).status_code == 404


def test_a_form_of_the_draft_is_shown_with_given_values(api: Api) -> None:
    path = f"{_draft(api)}/{NODE}/preview"
    form = _post(api, path, {"inputs": {"draft.output": "a draft"}}).json()
    assert form["form_content"] == "a draft\n{{#$output.note#}}"
    assert [action["id"] for action in form["actions"]] == ["ok", "no"]
    assert (form["node_id"], form["node_title"], form["form_token"]) == ("ask", "Ask", None)
    missing = _post(api, path, {"inputs": {}})
    assert (missing.status_code, missing.json()["code"]) == (400, "invalid_param")
    other = _post(api, path.replace("/ask/", "/draft/"), {"inputs": {}})
    assert (other.status_code, other.json()["code"]) == (400, "invalid_param")


@pytest.mark.parametrize("note", ["fine", '{{ 7 * 7 }} größe "x"\n{% if'])
def test_a_form_of_the_draft_is_answered_and_kept_as_its_last_run(api: Api, note: str) -> None:
    path = _draft(api)
    body = {"inputs": {"#draft.output#": "a draft"}, "form_inputs": {"note": note}, "action": "ok"}
    outputs = _post(api, f"{path}/{NODE}/run", body).json()
    assert outputs == {
        "note": note,
        "__action_id": "ok",
        "__action_value": "Ok",
        "__rendered_content": f"a draft\n{note}",
    }

    def last_run() -> httpx.Response:
        return api.http.get(f"{path}/workflows/draft/nodes/ask/last-run", headers=api.admin)

    until(lambda: last_run().status_code == 200)
    assert (last_run().json()["status"], last_run().json()["outputs"]) == ("succeeded", outputs)
    wrong = _post(api, f"{path}/{NODE}/run", body | {"action": "maybe"})
    assert (wrong.status_code, wrong.json()["code"]) == (400, "invalid_form_data")
    none = _post(api, f"{path}/{NODE}/run", {"inputs": {}})
    assert none.status_code == 400


def test_a_form_of_the_draft_takes_the_files_that_its_field_allows(api: Api) -> None:
    path = _draft(api, PICTURE)
    app_id = path.rpartition("/")[2]

    def answered(name: str, mime_type: str) -> httpx.Response:
        file = uploaded(api, name, "image", mime_type, api.admin, params={"app_id": app_id})
        return _post(api, f"{path}/{NODE}/run", {"inputs": {}, "form_inputs": {"picture": file}, "action": "ok"})

    refused = answered("a.pdf", "application/pdf")
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_form_data"), refused.text
    assert answered("a.png", "image/png").json()["picture"]["filename"] == "a.png"


def test_a_single_run_of_a_node_that_asks_is_answered_as_paused(api: Api) -> None:
    path = _draft(api)
    body = {"inputs": {"draft.output": "a draft"}}
    execution = _post(api, f"{path}/workflows/draft/nodes/ask/run", body).json()
    assert (execution["status"], execution["node_id"]) == ("paused", "ask")


def test_nothing_is_delivered(api: Api) -> None:
    path = f"{_draft(api)}/workflows/draft/human-input/nodes/ask/delivery-test"
    for body in ({"delivery_method_id": "mail", "inputs": {}}, {"delivery_method_id": ""}):
        answer = _post(api, path, body)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_param")
        assert answer.json()["params"] == "delivery_method_id"
