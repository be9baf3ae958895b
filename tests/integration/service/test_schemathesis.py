"""Requests generated from the OpenAPI document, within it and against it: no 500, nothing undocumented."""

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.process import running

POSTS = ["POST /score", "POST /feedback", "POST /v2/models/{name}/infer"]
POSTS += ["POST /v2/models/{name}/versions/{number}/infer"]
GETS = ["GET /v2/models/{name}", "GET /v2/models/{name}/versions/{number}/ready"]
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def service(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    with running(
        small.store, folder, "--drain-pause-s", "0", CTR_FEEDBACK_DIR=str(folder / "feedback")
    ) as started:
        started.wait_until("/health/ready", 200)
        yield started


@pytest.fixture(scope="module")
def schema(service):
    document = httpx.get(service.url + "/openapi.json").json()
    loaded = schemathesis.openapi.from_dict(document)
    loaded.config.update(base_url=service.url)
    return {f"{o.ok().method.upper()} {o.ok().path}": o.ok() for o in loaded.get_all_operations()}


def test_the_document_has_the_operations_that_are_tried(schema):
    assert {*POSTS, *GETS} <= set(schema)


@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, GenerationMode.POSITIVE) for name in (*POSTS, *GETS)]
    + [(name, GenerationMode.NEGATIVE) for name in POSTS],  # any text is a valid path
    ids=lambda value: value if isinstance(value, str) else value.value,
)
def test_no_request_makes_the_service_fail_or_answer_off_the_document(schema, small, name, mode):
    @settings(
        max_examples=25,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=schema[name].as_strategy(generation_mode=mode), known=st.booleans())
    def ask(case, known):
        if known and case.path_parameters:
            case.path_parameters["name"] = "small"
            if "number" in case.path_parameters:
                case.path_parameters["number"] = small.bundle.bundle_id[:8]
        case.headers.pop("x-deadline-ms", None)  # of 1 ms, which is then rightly answered 504
        case.validate_response(case.call(), checks=CHECKS)

    ask()
