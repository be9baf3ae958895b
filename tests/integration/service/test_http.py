"""The service over HTTP, in a process of its own: scores, every kind of bad input, probes, documents."""

import json

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.bundles import DOMAINS, NUM_ITEMS
from tests.support.process import running
from tests.support.tokens import BEARER, TOKEN, write_tokens

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def service(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    tokens = str(write_tokens(folder))
    with running(small.store, folder, "--drain-pause-s", "0", "--tokens-file", tokens) as started:
        started.wait_until("/health/ready", 200)
        yield started


@pytest.fixture
def client(service):
    with httpx.Client(base_url=service.url, timeout=30, headers=[BEARER]) as opened:
        yield opened


def post(client, body, **headers):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post("/score", content=content, headers={**JSON, **headers})


def request(**changes):
    return {"domain": "home", "user": {"id": "u3"}, "items": [{"id": "i1"}, {"id": "i2"}], **changes}


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_rows_columns_and_the_formula_agree(client, small, domain, count):
    numbers = [(7 * n) % NUM_ITEMS for n in range(count)]
    ids = [f"i{n}" for n in numbers]
    rows = post(client, request(domain=domain, items=[{"id": i} for i in ids])).json()
    columns = post(client, request(domain=domain, items={"id": ids})).json()

    assert rows["scores"] == columns["scores"]
    np.testing.assert_allclose(rows["scores"], small.expected_stored(domain, 3, numbers), atol=1e-6)
    assert rows["model"]["bundle"] == small.bundle.bundle_id
    assert rows["model"]["graph"] == ("cluster-1" if domain == "music" else "whole")
    assert (rows["experiment"], rows["arm"], rows["degraded"]) == (None, None, [])


def test_payload_features_override_stored_ones_in_both_forms(client, small):
    history = [{"item": f"i{n}", "domain": "home"} for n in range(6)]
    user = {"id": "nobody", "features": {"age": 44}, "history": history}
    context = {"hour": 7}
    items = {"price": [3.5, None], "tag": ["tag-1", "tag-2"], "vector": [[1, 2, 3], [0.5, 0, -1]]}
    rows = [{"id": f"new{n}", "features": {k: v[n] for k, v in items.items()}} for n in range(2)]
    by_row = post(client, request(user=user, context=context, items=rows)).json()
    columns = {"id": ["new0", "new1"], "features": items}
    by_column = post(client, request(user=user, context=context, items=columns)).json()
    raw_user = {"user_id": ["nobody"], "age": [44], "history": [history]}
    expected = small.expected("home", raw_user, {"item_id": ["new0", "new1"], **items}, {"hour": ["7"]})

    assert by_row["scores"] == by_column["scores"]
    np.testing.assert_allclose(by_row["scores"], expected, atol=1e-6)


def test_unknown_ids_score_through_the_unknown_row_and_explain_says_so(client, small):
    body = request(user={"id": "nobody"}, items=[{"id": "i5"}, {"id": 99}], explain=True)
    reply = post(client, body).json()

    np.testing.assert_allclose(reply["scores"], small.expected_stored("home", None, [5, None]), atol=1e-6)
    assert reply["explain"] == {
        "user": {"status": "missing", "age_s": None},
        "items": [{"status": "fresh", "age_s": None}, {"status": "missing", "age_s": None}],
        "domain": "known",
        "domain_row": 0,
        "graph": "whole",
        "cluster": 0,
        "experts_kept": ["e0", "e2"],
        "assignment": None,
    }
    assert reply["degraded"] == []


@pytest.mark.parametrize("path", ["/score", "/feedback", "/v2/models/small/infer"])
@pytest.mark.parametrize("sent", [None, f"Bearer {TOKEN}x", TOKEN, f"Basic {TOKEN}"])
def test_without_a_token_scoring_is_refused_unread(service, path, sent):
    headers = {**JSON, "x-request-id": "mine-4"} | ({} if sent is None else {"authorization": sent})
    response = httpx.post(service.url + path, content=b"{", headers=headers)
    problem = response.json()
    assert (response.status_code, problem["code"]) == (401, "unauthorized")
    assert response.headers["www-authenticate"] == "Bearer"
    assert problem["detail"].startswith("this needs a header `Authorization: Bearer TOKEN`")
    assert problem["request_id"] == response.headers["x-request-id"] == "mine-4"
    assert TOKEN not in response.text


@pytest.mark.parametrize(
    "path", ["/health/live", "/health/ready", "/metrics", "/docs", "/openapi.json", "/v2"]
)
def test_probes_documents_and_metrics_stay_open(service, path):
    assert httpx.get(service.url + path).status_code == 200


BAD = {
    "not json": (b"{", 400, "malformed_json", "truncated"),
    "empty": (b"", 400, "malformed_json", "the body is empty"),
    "nan": (
        b'{"domain":"home","items":[{"id":1,"features":{"price":NaN}}]}',
        400,
        "malformed_json",
        "invalid character",
    ),
    "not utf-8": (b'{"domain":"\xff","items":[]}', 400, "malformed_json", "not UTF-8"),
    "deep": (
        b'{"domain":"home","context":{"hour":' + b"[" * 50_000,
        400,
        "malformed_json",
        "nested too deeply",
    ),
    "infinity": (
        b'{"domain":"home","items":[{"id":1,"features":{"price":1e999}}]}',
        422,
        "invalid_request",
        "out of range",
    ),
    "array": ([], 422, "invalid_request", "Expected `object`, got `array`"),
    "no domain": ({"items": [{"id": 1}]}, 422, "invalid_request", "missing required field `domain`"),
    "unknown field": (request(colour=1), 422, "invalid_request", "unknown field `colour`"),
    "unknown item field": (
        request(items=[{"id": 1, "x": 2}]),
        422,
        "invalid_request",
        "unknown field `x` at $.items[0]",
    ),
    "wrong type": (request(items=[{"id": 1}, {"id": 1.5}]), 422, "invalid_request", "at $.items[1].id"),
    "no items": (request(items=[]), 422, "no_items", "at least 1"),
    "no item columns": (request(items={"id": []}), 422, "no_items", "at least 1"),
    "too many": (
        request(items={"id": list(range(1001))}),
        422,
        "too_many_items",
        "1001 items were sent, at most 1000",
    ),
    "long id": (
        request(items=[{"id": "i"}, {"id": "x" * 300}]),
        422,
        "too_long",
        "$.items[1].id, at most 256",
    ),
    "long domain": (request(domain="x" * 300), 422, "too_long", "$.domain, at most 256"),
    "long request id": (request(request_id="x" * 300), 422, "too_long", "$.request_id, at most 256"),
    "long tag": (
        request(items=[{"id": 1}, {"id": 2, "features": {"tag": "x" * 300}}]),
        422,
        "too_long",
        "$.items[1].features.tag",
    ),
    "long history": (request(user={"history": [{"item": 1}] * 1001}), 422, "too_long", "at most 1000"),
    "string price": (
        request(items=[{"id": 1}, {"id": 2, "features": {"price": "cheap"}}]),
        422,
        "invalid_request",
        "feature 'price': expected a finite number or null, got 'cheap'",
    ),
    "string price column": (
        request(items={"id": [1, 2], "features": {"price": [1, "cheap"]}}),
        422,
        "invalid_request",
        "got 'cheap'",
    ),
    "huge number": (
        request(items=[{"id": 1, "features": {"price": 10**400}}]),
        422,
        "invalid_request",
        "expected a finite number",
    ),
    "short column": (
        request(items={"id": [1, 2], "features": {"price": [1]}}),
        422,
        "invalid_request",
        "1 values for 2",
    ),
    "unknown feature": (
        request(items=[{"id": 1, "features": {"colour": 1}}]),
        422,
        "invalid_request",
        "unknown item feature 'colour'; known are: item_id, price, tag, vector",
    ),
    "unknown user feature": (
        request(user={"features": {"x": 1}}),
        422,
        "invalid_request",
        "unknown user feature",
    ),
    "unknown context": (request(context={"x": 1}), 422, "invalid_request", "unknown context feature"),
    "event field": (
        request(user={"history": [{"x": 1}]}),
        422,
        "invalid_request",
        "unknown event field ['x']",
    ),
    "history twice": (
        request(user={"history": [], "features": {"history": []}}),
        422,
        "invalid_request",
        "given twice",
    ),
    "unknown domain": (request(domain="tab_9"), 404, "unknown_domain", "'tab_9' is not among the 3 domains"),
}
FIELDS = {
    "wrong type": "$.items[1].id",
    "string price": "$.items[1].features.price",
    "string price column": "$.items.features.price[1]",
    "unknown feature": "$.items[0].features",
    "event field": "$.user.history",
    "unknown context": "$.context.x",
    "no items": "$.items",
    "unknown domain": "$.domain",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_status_code_and_message(client, name):
    body, status, code, message = BAD[name]
    response = post(client, body, **{"x-request-id": "mine-1"})
    problem = response.json()

    assert (response.status_code, problem["code"], problem["status"]) == (status, code, status)
    assert message in problem["detail"]
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["request_id"] == response.headers["x-request-id"] == "mine-1"
    assert problem["type"] == f"urn:ctr-serve:problem:{code}"
    if name in FIELDS:
        assert problem["field"] == FIELDS[name]


def test_limits_and_values_stand_in_the_problem(client):
    problem = post(client, BAD["too many"][0]).json()
    assert (problem["limit"], problem["value"]) == (1000, 1001)


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
def test_a_body_of_ten_megabytes_is_refused_with_the_limit(client, chunked):
    piece = b" " * 1_000_000
    content = (piece for _ in range(10)) if chunked else piece * 10
    response = client.post("/score", content=content, headers=JSON)
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    assert "at most 2097152 are taken" in response.json()["detail"]
    assert response.json()["limit"] == 2097152


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"content-type": "text/plain"}, "content type must be application/json, got text/plain"),
        ({}, "content type must be application/json, got none"),
        ({**JSON, "content-encoding": "gzip"}, "must not be compressed"),
    ],
)
def test_other_content_types_are_refused(client, headers, message):
    response = client.post("/score", content=b"{}", headers=headers)
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")
    assert message in response.json()["detail"]


def test_charset_parameter_is_taken(client):
    headers = {"content-type": "application/json; charset=utf-8"}
    assert client.post("/score", content=json.dumps(request()).encode(), headers=headers).status_code == 200


def test_other_methods_and_paths_get_problem_documents(client):
    wrong_method = client.get("/score")
    assert (wrong_method.status_code, wrong_method.json()["code"]) == (405, "method_not_allowed")
    assert wrong_method.headers["allow"] == "POST"
    nowhere = client.get("/nowhere", headers={"x-request-id": "mine-2"})
    assert (nowhere.status_code, nowhere.json()["code"]) == (404, "not_found")
    assert nowhere.json()["request_id"] == nowhere.headers["x-request-id"] == "mine-2"
    assert client.post("/health/live").json()["code"] == "method_not_allowed"


def test_request_id_comes_from_body_then_header_then_us(client):
    assert post(client, request(request_id="b"), **{"x-request-id": "h"}).json()["request_id"] == "b"
    assert post(client, request(), **{"x-request-id": "h"}).json()["request_id"] == "h"
    made = post(client, request())
    assert len(made.json()["request_id"]) == 16
    assert made.headers["x-request-id"] == made.json()["request_id"]


def test_metadata_names_bundle_domains_and_experts(client, small):
    document = client.get("/v2/models/small").json()
    assert document["versions"] == [small.bundle.bundle_id]
    assert document["domains"]["music"]["experts_kept"] == ["e0", "e2"]
    assert {
        "name": "domain",
        "datatype": "INT64",
        "shape": [-1],
        "parameters": {"source": "domain"},
    } in document["inputs"]
    assert document["outputs"] == [{"name": "probability", "datatype": "FP32", "shape": [-1]}]
    assert client.get("/v2/models/other").json()["code"] == "unknown_model"


def test_openapi_describes_score_and_its_examples_run(client):
    document = client.get("/openapi.json").json()
    score = document["paths"]["/score"]["post"]
    statuses = {"200", "400", "401", "403", "404", "413", "415", "422", "429", "500", "503", "504"}
    assert set(score["responses"]) == statuses
    examples = score["requestBody"]["content"]["application/json"]["examples"]
    assert len(examples) == 3
    for example in examples.values():
        response = post(client, example["value"])
        assert response.status_code == 200, response.text


def test_metrics_count_requests_without_ids_in_labels(client):
    post(client, request(domain="sport"))
    text = client.get("/metrics").text
    assert 'ctr_score_requests_total{arm="none",outcome="ok",version=' in text
    assert 'ctr_domain_candidates_total{domain="sport"}' in text
    assert "u3" not in text


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(["price", "tag", "vector", "item_id", "x"])
items = st.fixed_dictionaries(
    {"id": st.sampled_from(["i1", "i2", 3]) | values},
    optional={"features": st.dictionaries(names, values, max_size=3) | values},
)
bodies = st.fixed_dictionaries(
    {"domain": st.sampled_from([*DOMAINS, "x"]), "items": st.lists(items, max_size=4) | values},
    optional={
        "user": st.fixed_dictionaries(
            {},
            optional={
                "id": values,
                "features": st.dictionaries(st.sampled_from(["age", "tastes", "history", "user_id"]), values),
                "history": st.lists(st.dictionaries(st.sampled_from(["item", "domain"]), values, max_size=2)),
            },
        )
        | values,
        "context": st.dictionaries(st.sampled_from(["hour"]), values) | values,
        "explain": values,
    },
)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=bodies.map(lambda body: json.dumps(body).encode()) | st.binary(max_size=60))
def test_no_body_makes_the_service_fail(client, body):
    response = post(client, body)
    assert response.status_code in {200, 400, 404, 422}, response.text
    if response.status_code == 200:
        assert all(0 <= score <= 1 for score in response.json()["scores"])
