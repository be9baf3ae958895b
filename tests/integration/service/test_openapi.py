"""The OpenAPI document: complete, as committed, and every example in it runs.

`openapi.json` beside this test is what `ctr-serve openapi` prints. When the API is changed on purpose:

    ctr-serve openapi > tests/integration/service/openapi.json

and read the difference as a caller of the API would.
"""

import asyncio
import json
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from service.api.admin import METHODS
from service.api.openapi import INFER_PATHS
from service.cli import app as command
from service.errors import ANSWERED, MethodNotAllowed
from service.settings import Settings
from tests.support.redis_app import running_app

NOT_OF_AN_OPERATION = {MethodNotAllowed.code}
SNAPSHOT = Path(__file__).parent / "openapi.json"


def documented(path=SNAPSHOT):
    return json.loads(path.read_bytes())


@pytest.fixture(scope="module")
def served(small, tmp_path_factory):
    """Run a coroutine function on an HTTP client of the app in this process, feedback on."""
    settings = Settings(
        store=small.store, feedback_dir=tmp_path_factory.mktemp("feedback"), deadline_ms=20_000
    )

    def run(use):
        async def whole():
            async with running_app(settings) as app:
                transport = httpx.ASGITransport(app)
                async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                    return await use(client)

        return asyncio.run(whole())

    return run


def operations(document, *, admin=True):
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method != "servers" and (admin or "servers" not in methods):
                yield path, method, operation


def test_the_document_is_the_one_that_is_committed():
    printed = CliRunner().invoke(command, ["openapi"])
    assert printed.exit_code == 0
    assert json.loads(printed.stdout) == documented(), "see the first lines of this file"


def test_it_has_every_route_and_every_error(served):
    async def routes(client):
        return (await client.get("/openapi.json")).json()

    document = served(routes)
    assert set(document["paths"]) == set(documented()["paths"])
    assert set(document["paths"]) == {
        "/score",
        "/feedback",
        "/health/live",
        "/health/startup",
        "/health/ready",
        "/metrics",
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/{name}",
        "/v2/models/{name}/ready",
        "/v2/models/{name}/versions/{number}",
        "/v2/models/{name}/versions/{number}/ready",
        *INFER_PATHS,
        *METHODS,
    }
    told = json.dumps([operation["responses"] for _, _, operation in operations(document)])
    codes = {error.code for error in ANSWERED if f"`{error.code}`" in told}
    assert {error.code for error in ANSWERED} - codes <= NOT_OF_AN_OPERATION
    assert len({operation["operationId"] for _, _, operation in operations(document)}) == len(
        list(operations(document))
    )


def examples(document):
    """Every request that the document shows: method, filled path, operation, body."""
    for path, method, operation in operations(document, admin=False):
        filled = path
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "path":
                filled = filled.replace(f"{{{parameter['name']}}}", parameter["example"])
        if "requestBody" not in operation:
            yield method, filled, operation, None
            continue
        for example in operation["requestBody"]["content"]["application/json"]["examples"].values():
            yield method, filled, operation, example["value"]


def test_every_example_runs_and_gets_the_status_that_is_documented(served):
    async def ask_all(client):
        document = (await client.get("/openapi.json")).json()
        return [
            (operation, await client.request(method, path, json=body))
            for method, path, operation, body in examples(document)
        ]

    answered = served(ask_all)
    assert len(answered) == 11 + 3 + 1 + 2  # routes read with GET; examples of score, feedback, infer twice
    for operation, response in answered:
        good = next(status for status in operation["responses"] if status.startswith("2"))
        assert str(response.status_code) == good, (operation["operationId"], response.text)
        kind = response.headers["content-type"].split(";")[0]
        assert kind in operation["responses"][good]["content"]


def test_references_lead_somewhere_and_posts_may_carry_a_token():
    document = documented()
    text = json.dumps(document)
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= set(document["components"]["schemas"])
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    for _, method, operation in operations(document):
        assert ("security" in operation) is (method == "post" or "admin" in operation["tags"])
