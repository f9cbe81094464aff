"""A database that goes away while runs go on: streams and single runs come from the log, lists say what is missing.

Oracles: the runs end as they would have; when the database is back, its rows are those of all runs.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url

from tests import servers
from tests.documents import document, edges, end, start, template
from tests.e2e.deployment import Deployment, deployment, frames, wait_until
from tests.e2e.line import Line
from tests.e2e.public_apps import rows

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(180)]

DOCUMENT = document([start("q"), template("t", "{{ q }}!", q="start.q"), end(out="t.output")], edges("start > t > end"))


@pytest.fixture
def line(postgres_url: str) -> Iterator[Line]:
    url = make_url(postgres_url)
    with Line(url.host or "127.0.0.1", url.port or 5432) as it:
        yield it


@pytest.fixture
def deployed(
    kafka_server: servers.Kafka, kafka_prefix: str, postgres_url: str, line: Line, tmp_path: Path
) -> Iterator[Deployment]:
    through = make_url(postgres_url).set(host="127.0.0.1", port=line.port).render_as_string(hide_password=False)
    with deployment(kafka_server.bootstrap, kafka_prefix, through, tmp_path) as it:
        yield it


@pytest.mark.parametrize("fault", [Line.cut, Line.hold], ids=["refused", "silent"])
def test_a_database_that_is_away_holds_up_lists_only(
    deployed: Deployment, line: Line, postgres_url: str, fault: Callable[[Line], None]
) -> None:
    api = deployed.client(deployed.start("api"))
    deployed.start("projector")
    deployed.start("executor")
    app = api.import_document(DOCUMENT)
    key = app["api_key"]

    def ran(word: str) -> str:
        with api.run(key, {"q": word}) as answer:
            got = list(frames(answer))
            assert got[-1]["data"]["outputs"] == {"out": f"{word}!"}
            return answer.headers["X-Workflow-Run-Id"]

    def written(run_id: str) -> bool:
        row, _ = rows(postgres_url, run_id)
        return row is not None and row["finished_at"] is not None

    before = ran("before")
    wait_until(lambda: written(before), "the rows of the first run")
    fault(line)
    meanwhile = ran("meanwhile")
    # A replica that has never heard of the runs has nothing but the log.
    other = deployed.client(deployed.start("api"))
    for each, name in ((api, "here"), (other, "there")):
        for run_id in (before, meanwhile):
            assert each.detail(key, run_id)["status"] == "succeeded", name
            assert each.history(run_id)[-1]["type"] == "RunSucceeded", name
    listing = other.http.get("/v1/runs", headers=other.admin)
    assert (listing.status_code, listing.json()["code"]) == (503, "service_unavailable")
    assert re.search(r"\d", listing.headers["Retry-After"])
    line.mend()
    wait_until(lambda: written(meanwhile), "the rows of the run that the database did not see")
    wait_until(lambda: other.http.get("/v1/runs", headers=other.admin).status_code == 200, "lists again")
    listed = other.http.get("/v1/runs", headers=other.admin).json()["data"]
    assert [run["id"] for run in listed] == [meanwhile, before]
