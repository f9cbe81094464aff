"""Runs that wait for people on a real broker and database: through kill -9, at any replica."""

from pathlib import Path
from typing import Any

import pytest

from tests import servers
from tests.documents import document, edges, end, human_input, start, template
from tests.e2e.deployment import Api, deployment, frames, wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(180)]

ASK = document(
    [
        start("q"),
        template("t", "{{ q }}!", q="start.q"),
        human_input("ask"),
        end(note="ask.note", d="t.output"),
    ],
    edges("start > t > ask[ok] > end"),
)
SHORT = document(
    [start("q"), human_input("ask", timeout=2 / 3600), end("late", how="ask.__action_id")],
    edges("start > ask[__timeout] > late"),
)


def _paused(api: Api, key: str) -> tuple[str, dict[str, Any]]:
    """Start a run and follow it to its pause: its id, and the form."""
    with api.run(key, {"q": "tea"}) as answer:
        paused = next(frame for frame in frames(answer) if frame["event"] == "workflow_paused")
    return paused["workflow_run_id"], paused["data"]["reasons"][0]


def _listed(api: Api, status: str) -> set[str]:
    found = api.http.get("/v1/runs", params={"status": status}, headers=api.admin).json()["data"]
    return {run["id"] for run in found}


def test_forms_outlive_the_executor_and_are_answered_at_any_replica(
    kafka_server: servers.Kafka, kafka_prefix: str, postgres_url: str, tmp_path: Path
) -> None:
    with deployment(kafka_server.bootstrap, kafka_prefix, postgres_url, tmp_path) as deployed:
        deployed.start("projector")
        executor = deployed.start("executor")
        here, there = (deployed.client(deployed.start("api")) for _ in range(2))
        key, short_key = (here.import_document(text)["api_key"] for text in (ASK, SHORT))
        run_id, form = _paused(here, key)
        short_id, _ = _paused(here, short_key)
        executor.kill()
        wait_until(lambda: run_id in _listed(there, "paused"), "the list shows the paused run")
        path, headers = f"/v1/form/human_input/{form['form_token']}", {"Authorization": f"Bearer {key}"}
        assert there.http.get(path, headers=headers).json()["form_content"] == form["form_content"]

        deployed.start("executor")
        body = {"inputs": {"note": "fine"}, "action": "ok", "user": "somebody"}

        def submitted() -> bool:
            answer = there.http.post(path, headers=headers, json=body)
            # 503: no executor has decided yet; the submission may have been decided when it is repeated.
            assert answer.status_code in (200, 503) or answer.json()["code"] == "human_input_form_submitted", (
                answer.text
            )
            return answer.status_code != 503

        wait_until(submitted, "the submission is decided")
        wait_until(lambda: here.detail(key, run_id)["status"] == "succeeded", "the run has ended")
        assert here.detail(key, run_id)["outputs"] == {"note": "fine", "d": "tea!"}
        wait_until(lambda: here.detail(short_key, short_id)["status"] == "succeeded", "the form has expired")
        assert here.detail(short_key, short_id)["outputs"] == {"how": "__timeout"}
        for one in (run_id, short_id):
            types = [line["type"] for line in here.history(one)]
            assert (types.count("NodeStarted"), types.count("RunResumed")) == (4 if one == run_id else 3, 1)
            assert "NodeRestarted" not in types
        wait_until(lambda: not _listed(here, "paused"), "no run is paused any more")
