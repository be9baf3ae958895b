"""What infer refuses, and in which words: tensors, requests, numbers that have no score."""

import asyncio

import numpy as np
import pytest

from service.errors import NotFiniteError
from tests.support.asgi import ask, with_app
from tests.support.bundles import build_bundle
from tests.support.tensors import arrays, changed, ids_with, infer, json_body, one_row

BAD = {
    "negative id": ("item_ints", lambda s: {"data": ids_with(s, "item_ints", 0, 0, -1)}, "-1 is not in [0, "),
    "id too large": (
        "item_ints",
        lambda s: {"data": ids_with(s, "item_ints", 0, 0, 122)},
        "input 'item_ints', row 0, column 0: 122 is not in [0, 122)",
    ),
    "id beyond 32 bits": (
        "user_ints",
        lambda s: {"data": ids_with(s, "user_ints", 0, 1, 2**32)},
        "input 'user_ints', row 0, column 1: 4294967296 is not in [0, ",
    ),
    "id beyond 64 bits": (
        "user_ints",
        lambda s: {"data": ids_with(s, "user_ints", 0, 1, 2**64)},
        "input 'user_ints' holds an integer beyond 64 bits",
    ),
    "domain": ("domain", lambda s: {"data": [3]}, "graph 'whole' serves no domain 3; it serves 0, 1, 2"),
    "negative domain": ("domain", lambda s: {"data": [-1]}, "graph 'whole' serves no domain -1"),
    "request index": (
        "request_index",
        lambda s: {"data": [1]},
        "input 'request_index', row 0: 1 is not in [0, 1)",
    ),
    "datatype": ("item_ints", lambda s: {"datatype": "FP64"}, "input 'item_ints' is INT32, got 'FP64'"),
    "width": (
        "item_floats",
        lambda s: {"shape": [1, 9]},
        "input 'item_floats' has shape [-1, 4] with at least 1 row",
    ),
    "rank": (
        "domain",
        lambda s: {"shape": [1, 1]},
        "input 'domain' has shape [-1] with at least 1 row, got [1, 1]",
    ),
    "no rows": ("domain", lambda s: {"shape": [0], "data": []}, "with at least 1 row, got [0]"),
    "rows": (
        "domain",
        lambda s: {"shape": [2], "data": [0, 0]},
        "input 'domain' has 2 rows, but 'user_ints' has 1",
    ),
    "too many rows": (
        "domain",
        lambda s: {"shape": [10**12], "data": [0]},
        "has 1000000000000 rows, at most 1000",
    ),
    "few values": ("domain", lambda s: {"data": []}, "input 'domain' of shape [1] has 1 values, got 0"),
    "ragged": (
        "item_floats",
        lambda s: {"data": [[1.0, 2.0]]},
        "input 'item_floats': nested data does not have the shape [1, 4]",
    ),
    "text": ("domain", lambda s: {"data": ["0"]}, "input 'domain': value 0 must be an integer, got '0'"),
    "a truth value": ("domain", lambda s: {"data": [True]}, "value 0 must be an integer, got 'True'"),
    "a fraction": ("domain", lambda s: {"data": [0.5]}, "value 0 must be an integer, got '0.5'"),
    "a number as text": (
        "item_floats",
        lambda s: {"data": ["x", 1, 1, 1]},
        "value 0 must be a number, got 'x'",
    ),
    "too large for FP32": (
        "item_floats",
        lambda s: {"data": [1e39, 0, 0, 0]},
        "a number is not finite as FP32",
    ),
    "no data": ("domain", lambda s: {"data": None}, "Expected `array`, got `null`"),
    "unknown name": (
        "domain",
        lambda s: {"name": "colour"},
        "the graph has no input 'colour'; it has user_ints",
    ),
}


@pytest.fixture(scope="module")
def app_small(small):
    """The app loaded once, asked from the tests of this module."""
    from service.app import create_app
    from service.settings import Settings

    app = create_app(Settings(store=small.store))
    asyncio.run(app.serving.load())
    yield app
    app.serving.close()


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_tensor_is_refused_by_name(app_small, small, name):
    tensor, change, message = BAD[name]
    body = changed(one_row(small), tensor, **change(small))
    status, _, problem = asyncio.run(ask(app_small, body, path="/v2/models/small/infer"))
    assert (status, problem["code"]) == (422, "invalid_request"), problem
    assert message in problem["detail"]
    assert problem["error"] == problem["detail"]
    assert problem["field"].startswith("$.inputs")


def refusal(app, body, **options):
    status, _, problem = asyncio.run(ask(app, body, path="/v2/models/small/infer", **options))
    return status, problem["detail"]


def test_missing_and_repeated_inputs_are_refused_by_name(app_small, small):
    body = json_body(one_row(small))
    dropped = {**body, "inputs": body["inputs"][1:]}
    twice = {**body, "inputs": [*body["inputs"], body["inputs"][0]]}
    name = body["inputs"][0]["name"]
    assert refusal(app_small, dropped) == (422, f"input '{name}' is missing")
    assert refusal(app_small, twice) == (422, f"input '{name}' is sent twice")
    bare = {**body, "inputs": [{k: v for k, v in body["inputs"][0].items() if k != "data"}]}
    assert refusal(app_small, bare)[1].startswith(f"input '{name}' has neither `data` nor a binary_data_size")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parameters": {}}, "parameters.graph: name one; this model has whole, cluster-1"),
        (
            {"parameters": {"graph": "x"}},
            "parameters.graph: there is no 'x'; this model has whole, cluster-1",
        ),
        ({"parameters": {"graph": ["whole"]}}, "there is no 'an array'"),
        ({"outputs": [{"name": "y"}]}, "the graph has no output 'y'; it has probability"),
        (
            {"outputs": [{"name": "probability", "parameters": {"classification": 3}}]},
            "classification of outputs is not offered",
        ),
        (
            {"outputs": [{"name": "probability", "parameters": {"binary_data": 3}}]},
            "whether outputs come as bytes is true or false, got '3'",
        ),
        ({"id": "x" * 257}, "an id of 257 characters was sent, at most 256 are taken"),
        ({"inputs": 3}, "Expected `array`, got `int` at $.inputs"),
    ],
)
def test_a_wrong_request_is_refused(app_small, small, change, message):
    status, detail = refusal(app_small, json_body(one_row(small), **change))
    assert status == 422
    assert message in detail


def test_flat_data_is_the_same_as_nested(app_small, small):
    values = arrays(small, ["home", "sport"], [3, 4], [1, 2, 3], [0, 1, 0])
    nested = json_body(values)
    flat = json_body(values)
    for entry, array in zip(flat["inputs"], values.values(), strict=True):
        entry["data"] = array.reshape(-1).tolist()
    replies = [asyncio.run(ask(app_small, body, path="/v2/models/small/infer")) for body in (nested, flat)]
    assert replies[0][0] == 200
    assert replies[0][2]["outputs"][0]["data"] == replies[1][2]["outputs"][0]["data"]


def test_a_graph_of_some_domains_refuses_the_others(app_small, small):
    values = arrays(small, ["home"], [3], [1], [0], "cluster-1")
    status, detail = refusal(app_small, json_body(values, parameters={"graph": "cluster-1"}))
    assert (status, detail) == (
        422,
        "input 'domain', row 0: graph 'cluster-1' serves no domain 0; it serves 2",
    )


def test_the_row_of_unlisted_domains_is_open_where_they_are_scored(tmp_path, small):
    built = build_bundle(tmp_path, policy="zero_shot")
    values = arrays(built, ["home"], [3], [1], [0])
    values["domain"] = np.array([3])
    status, _, reply = infer(small, json_body(values), store=tmp_path)
    assert status == 200
    assert reply["outputs"][0]["data"] == pytest.approx(
        built.expected_stored("new", 3, [1]).tolist(), abs=1e-6
    )


def test_numbers_that_a_graph_cannot_score_are_refused_not_failed(small):
    async def use(app):
        def overflow(rows):
            raise NotFiniteError("secret.onnx: row 0 has no finite score", row=0)

        for predictor in app.serving.scorer.loaded.predictors.values():
            predictor.score = overflow
        plain = {"domain": "home", "items": [{"id": "i1"}]}
        own = {**plain, "items": [{"id": "i1", "features": {"price": 1e300}}]}
        return (
            await ask(app, json_body(one_row(small)), path="/v2/models/small/infer"),
            await ask(app, own),
            await ask(app, plain),
        )

    inferred, own, plain = with_app(small.store, use)
    assert (inferred[0], inferred[2]["code"]) == (422, "invalid_request")
    assert inferred[2]["detail"] == "graph 'whole' gives no finite number for row 0 of these inputs"
    assert (own[0], own[2]["code"]) == (422, "invalid_request")
    assert own[2]["detail"] == "the features of this request give candidate 0 no finite score"
    assert (plain[0], plain[2]["code"]) == (500, "internal")  # then stored features or the graph are at fault
    assert "secret" not in str((inferred, own, plain))


def test_other_methods_and_paths_are_refused(app_small):
    def problem(path, method="POST"):
        status, _, document = asyncio.run(ask(app_small, {}, path=path, method=method))
        return status, document["code"], document["error"]

    assert problem("/v2/models/small/infer", "GET") == (
        405,
        "method_not_allowed",
        "/v2/models/small/infer takes POST, not GET",
    )
    assert problem("/v2/models/a/b/infer")[:2] == (404, "not_found")
    assert problem("/v2/models/small/versions/x/ready", "GET")[:2] == (404, "unknown_model")
    assert problem("/v2/nowhere", "GET")[:2] == (404, "not_found")
