"""A run on Kafka whose large value leaves the bucket: set aside, named by every process, released when it is back."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import servers
from tests.documents import code, document, edges, end, start
from tests.e2e.deployment import Deployment, Service, deployment, frames, wait_until
from tests.s3_server import bucket_server

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(180)]

FLOW = document([start("q"), code("large"), code("slow"), end(a="slow.result")], edges("start > large > slow > end"))
PINS = {
    "nodes": {
        "large": {"outputs": {"result": "x" * 200_000}},
        "slow": {"outputs": {"result": "late"}, "delay_s": 20},
    }
}


def typed(deployed: Deployment, api: Service, *arguments: str) -> tuple[int, str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FLOWLEDGER_")}
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from flowledger.cli import main; sys.exit(main())", *arguments],
        env=clean | deployed.settings | {"FLOWLEDGER_URL": api.url},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_run_whose_value_left_the_bucket_is_released_when_it_is_back(
    kafka_server: servers.Kafka, kafka_prefix: str, postgres_url: str, tmp_path: Path
) -> None:
    with (
        bucket_server() as bucket,
        deployment(kafka_server.bootstrap, kafka_prefix, postgres_url, tmp_path, 1) as deployed,
    ):
        at = bucket.bucket
        deployed.settings |= {
            "FLOWLEDGER_S3_BUCKET": f"{at.name}/{at.prefix.rstrip('/')}",
            "FLOWLEDGER_S3_ENDPOINT": at.endpoint,
            "FLOWLEDGER_S3_REGION": at.region,
            "FLOWLEDGER_S3_ACCESS_KEY": at.access_key,
            "FLOWLEDGER_S3_SECRET_KEY": at.secret_key,
        }
        service = deployed.start("api")
        api = deployed.client(service)
        deployed.start("projector")
        executor = deployed.start("executor")
        app_id = api.import_document(FLOW)["app_id"]
        body = {"app_id": app_id, "inputs": {"q": "1"}, "pins": PINS, "response_mode": "streaming"}
        with api.http.stream("POST", "/v1/runs", json=body, headers=api.admin) as answer:
            run_id = answer.headers["X-Workflow-Run-Id"]
            next(frame for frame in frames(answer) if (frame.get("data") or {}).get("node_id") == "slow")

        def listed() -> list[dict[str, Any]]:
            exit_code, out, err = typed(deployed, service, "quarantine", "list", "--json")
            assert exit_code == 0, err
            return [json.loads(line) for line in out.splitlines()]

        executor.kill()
        kept = dict(bucket.objects)
        bucket.objects.clear()
        second = deployed.start("executor")
        wait_until(lambda: [one["recorded"] for one in listed()] == [True], "the run is set aside", every_s=0.5)
        exit_code, _, err = typed(deployed, service, "quarantine", "release", run_id)
        assert (exit_code, "stays set aside" in err) == (2, True), err
        second.kill()
        bucket.objects.update(kept)
        deployed.start("executor")
        assert [(one["run_id"], one["foldable"]) for one in listed()] == [(run_id, True)]
        released = api.http.post(f"/v1/runs/{run_id}/release", headers=api.admin)
        assert (released.status_code, released.json()["released"]) == (200, True), released.text
        wait_until(lambda: api.history(run_id)[-1]["type"] == "RunSucceeded", "the run goes on", 60, every_s=0.2)
        assert listed() == []
