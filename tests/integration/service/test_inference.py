"""Open Inference Protocol v2: an off-the-shelf client over a socket, both encodings, and every refusal."""

import asyncio
import json

import httpx
import numpy as np
import pytest
import tritonclient.http as v2
from tritonclient.utils import InferenceServerException

from tests.support.asgi import ask, with_app
from tests.support.bundles import DOMAINS, GRAPH_OF, build_bundle
from tests.support.process import running
from tests.support.routing import build_three, experiment, write_routing
from tests.support.tensors import DATATYPES, arrays, infer, json_body, one_row
from tests.support.tokens import TOKEN, write_tokens


@pytest.fixture(scope="module")
def service(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    tokens = str(write_tokens(folder))
    with running(small.store, folder, "--drain-pause-s", "0", CTR_TOKENS_FILE=tokens) as started:
        started.wait_until("/health/ready", 200)
        yield started


@pytest.fixture(scope="module")
def client(service):
    opened = v2.InferenceServerClient(service.url.removeprefix("http://"))
    yield opened
    opened.close()


def bearer(**more):
    """Headers of one call; the client writes its own into the same dictionary."""
    return {"Authorization": f"Bearer {TOKEN}", **more}


def triton_inputs(values, *, binary):
    inputs = []
    for name, array in values.items():
        made = v2.InferInput(name, list(array.shape), DATATYPES[str(array.dtype)])
        made.set_data_from_numpy(array, binary_data=binary)
        inputs.append(made)
    return inputs


def test_the_client_finds_the_server_alive_ready_and_described(client, small):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("small")
    assert client.is_model_ready("small", small.bundle.bundle_id)
    assert not client.is_model_ready("other")
    assert not client.is_model_ready("small", "123456")
    server = client.get_server_metadata()
    assert (server["name"], server["extensions"]) == ("ctr-serve", ["binary_tensor_data"])
    assert server["version"]


@pytest.mark.parametrize("version", ["", "whole id", "part of it"])
def test_the_metadata_names_every_tensor_of_every_graph(client, small, version):
    number = {"": "", "whole id": small.bundle.bundle_id, "part of it": small.bundle.bundle_id[:8]}[version]
    model = client.get_model_metadata("small", number)
    graph = small.bundle.manifest.graphs["whole"]
    expected = [
        {
            "name": e.name,
            "datatype": DATATYPES[e.dtype],
            "shape": [-1, e.width] if e.width else [-1],
            "parameters": {"source": e.source},
        }
        for e in graph.inputs
    ]
    assert (model["name"], model["versions"]) == ("small", [small.bundle.bundle_id])
    assert model["inputs"] == model["graphs"]["whole"]["inputs"] == expected
    assert model["outputs"] == [{"name": "probability", "datatype": "FP32", "shape": [-1]}]
    assert set(model["graphs"]) == {"whole", "cluster-1"}
    placed = model["graphs"]["whole"]["placement"]
    assert (placed["provider"], placed["padded_rows"]) == ("CPUExecutionProvider", [])
    assert set(placed["not_taken"].values()) == {"the manifest plans no GPU for this graph"}
    assert "CPUExecutionProvider" in model["runtime"]["providers"]


@pytest.mark.parametrize("binary_in", [True, False], ids=["bytes in", "json in"])
@pytest.mark.parametrize("binary_out", [True, False], ids=["bytes out", "json out"])
@pytest.mark.parametrize("domain", DOMAINS)
def test_infer_gives_the_scores_of_score(client, service, small, binary_in, binary_out, domain):
    numbers = [5, 0, 119, 5]
    body = {"domain": domain, "user": {"id": "u3"}, "items": {"id": [f"i{n}" for n in numbers]}}
    scored = httpx.post(service.url + "/score", json=body, headers=bearer()).json()["scores"]

    values = arrays(small, [domain], [3], numbers, [0] * 4, GRAPH_OF[domain])
    result = client.infer(
        "small",
        triton_inputs(values, binary=binary_in),
        outputs=[v2.InferRequestedOutput("probability", binary_data=binary_out)],
        request_id="mine",
        headers=bearer(),
        parameters={"graph": GRAPH_OF[domain]},
    )
    answer = result.get_response()

    np.testing.assert_allclose(result.as_numpy("probability"), scored, atol=1e-7)
    assert (answer["model_name"], answer["model_version"]) == ("small", small.bundle.bundle_id)
    assert (answer["id"], answer["parameters"]) == ("mine", {"graph": GRAPH_OF[domain]})
    assert answer["outputs"][0]["shape"] == [4]
    assert ("data" in answer["outputs"][0]) is not binary_out


def test_several_requests_in_one_run_score_as_each_alone(client, small):
    values = arrays(small, ["sport", "home"], [7, 2], [1, 2, 3], [1, 0, 1])
    result = client.infer(
        "small",
        triton_inputs(values, binary=True),
        small.bundle.bundle_id,
        headers=bearer(),
        parameters={"graph": "whole"},
    )
    expected = [
        small.expected_stored("home", 2, [1])[0],
        small.expected_stored("sport", 7, [2])[0],
        small.expected_stored("home", 2, [3])[0],
    ]
    np.testing.assert_allclose(result.as_numpy("probability"), expected, atol=1e-6)


def test_the_client_is_told_what_is_wrong(client, small):
    values = arrays(small, ["home"], [3], [1], [0])
    with pytest.raises(InferenceServerException, match="this needs a header `Authorization") as caught:
        client.infer("small", triton_inputs(values, binary=True))
    assert caught.value.status() == "401"
    with pytest.raises(InferenceServerException, match="name one; this model has whole, cluster-1"):
        client.infer("small", triton_inputs(values, binary=True), headers=bearer())
    with pytest.raises(InferenceServerException, match="no model 'other' is served; there is 'small'"):
        client.infer("other", triton_inputs(values, binary=True), headers=bearer())
    with pytest.raises(InferenceServerException, match="model 'small' has no version 'abc'; there is"):
        client.infer("small", triton_inputs(values, binary=True), "abc", headers=bearer())


def binary_request(small, *, length=None, sizes=None, tail=b""):
    values = one_row(small)
    inputs, data = [], b""
    for name, array in values.items():
        raw = array.tobytes()
        size = (sizes or {}).get(name, len(raw))
        entry = {"name": name, "shape": list(array.shape), "datatype": DATATYPES[str(array.dtype)]}
        inputs.append({**entry, "parameters": {"binary_data_size": size}})
        data += raw
    head = json.dumps({"inputs": inputs, "parameters": {"graph": "whole"}}).encode()
    return head + data + tail, str(len(head) if length is None else length)


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ({}, 200, None),
        ({"length": "x"}, 400, "inference-header-content-length must be a length within the body of"),
        ({"length": -1}, 400, "got '-1'"),
        ({"length": 10**9}, 400, "got '1000000000'"),
        ({"length": "9" * 5000}, 400, "must be a length within the body"),
        ({"length": 5}, 400, "truncated"),
        ({"tail": b"abc"}, 422, "the body has 3 bytes that belong to no input"),
        ({"sizes": {"user_ints": 4}}, 422, "input 'user_ints' of shape [1, "),
        ({"sizes": {"user_ints": -4}}, 422, "binary_data_size must be between 0 and the"),
        ({"sizes": {"user_ints": 10**9}}, 422, "got 1000000000"),
        ({"sizes": {"user_ints": "4"}}, 422, "binary_data_size must be between 0 and the"),
        ({"sizes": {"user_ints": True}}, 422, "got True"),
    ],
)
def test_lengths_of_binary_parts_are_checked(service, small, options, status, message):
    body, length = binary_request(small, **options)
    response = httpx.post(
        service.url + "/v2/models/small/infer",
        content=body,
        headers=bearer(**{"inference-header-content-length": length}),
    )
    assert response.status_code == status, response.text
    if message is not None:
        assert message in response.json()["error"]


def test_infer_shares_admission_and_deadline_with_score(small):
    async def use(app):
        pieces = asyncio.Queue()
        pieces.put_nowait({"type": "http.request", "body": b"{", "more_body": True})
        sent = []

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v2/models/small/infer", "headers": []}
        slow = asyncio.create_task(app(scope, pieces.get, send))
        await asyncio.sleep(0)
        refused = await ask(app, {"domain": "home", "items": [{"id": "i1"}]})
        await slow
        return refused, sent

    refused, late = with_app(small.store, use, max_inflight=1, deadline_ms=100)
    assert (refused[0], refused[2]["code"]) == (429, "overloaded")
    assert late[0]["status"] == 504
    assert "the deadline of 100 ms passed at stage 'body'" in json.loads(late[1]["body"])["error"]


@pytest.mark.parametrize("path", ["/v2/models/small/infer", "/feedback", "/score"])
def test_a_caller_may_ask_for_less_time_but_only_in_whole_milliseconds(small, tmp_path, path):
    async def use(app):
        pieces = asyncio.Queue()
        pieces.put_nowait({"type": "http.request", "body": b"{", "more_body": True})
        sent = []

        async def send(message):
            sent.append(message)

        head = [(b"content-type", b"application/json"), (b"x-deadline-ms", b"30")]
        await app({"type": "http", "method": "POST", "path": path, "headers": head}, pieces.get, send)
        odd = await ask(app, {}, path=path, headers=[(b"x-deadline-ms", b"0.5")])
        return json.loads(sent[1]["body"])["detail"], odd

    late, odd = with_app(small.store, use, feedback_dir=tmp_path)
    assert late == "the deadline of 30 ms passed at stage 'body'"
    assert (odd[0], odd[2]["field"], odd[2]["value"]) == (422, "x-deadline-ms", "0.5")


def test_bundles_of_arms_are_versions_of_the_model(tmp_path):
    bundles = build_three(tmp_path / "store")
    routing = write_routing(tmp_path / "routing.yaml", experiment())
    canary = bundles["canary"]

    async def use(app):
        _, _, model = await ask(app, {}, path="/v2/models/small", method="GET")
        path = f"/v2/models/small/versions/{canary.bundle.bundle_id[:10]}/infer"
        return model["versions"], await ask(app, json_body(one_row(canary)), path=path)

    versions, (status, _, reply) = with_app(tmp_path / "store", use, routing_file=routing)
    assert versions == [bundles["stable"].bundle.bundle_id, canary.bundle.bundle_id]
    assert (status, reply["model_version"]) == (200, canary.bundle.bundle_id)
    expected = canary.expected_stored("home", 3, [1])
    np.testing.assert_allclose(reply["outputs"][0]["data"], expected, atol=1e-6)


def test_with_one_graph_none_need_be_named(tmp_path, small):
    def only_whole(arguments):
        for name, entry in arguments["domains"].items():
            arguments["domains"][name] = entry.model_copy(update={"graph": "whole", "cluster": 0})
        del arguments["graphs"]["cluster-1"]

    built = build_bundle(tmp_path, change_manifest=only_whole, change_golden=lambda g: g.pop("cluster-1"))
    status, _, reply = infer(small, json_body(one_row(built), parameters={}), store=tmp_path)
    assert status == 200
    assert reply["parameters"] == {"graph": "whole"}


def test_requests_are_counted_by_outcome_and_timed(small):
    async def use(app):
        path = "/v2/models/small/infer"
        before = [(await ask(app, json_body(one_row(small)), path=path))[0] for _ in range(3)]
        refused = (await ask(app, {"inputs": []}, path=path))[0]
        return before, refused, app.serving.metrics.render().decode()

    answered, refused, text = with_app(small.store, use)
    assert (answered, refused) == ([200] * 3, 422)
    version = small.bundle.bundle_id[:12]
    assert f'ctr_infer_requests_total{{outcome="ok",version="{version}"}} 3.0\n' in text
    assert f'ctr_infer_requests_total{{outcome="rejected",version="{version}"}} 1.0\n' in text
    assert f'ctr_infer_duration_seconds_count{{version="{version}"}} 3.0\n' in text
