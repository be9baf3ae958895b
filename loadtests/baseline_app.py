"""The usual way to serve a model: FastAPI, pydantic and ONNX Runtime, and nothing done about speed.

    python -m loadtests.baseline_app --store STORE --port 9000 --processes 2

What `make bench-serve` holds the service against: the same graph, the same JSON with every feature in
it, the same scores. It is spared what usually goes wrong beside the code: one ONNX thread without
spinning, and a SO_REUSEPORT socket per process, so that no process sits idle.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import signal
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from loadtests.bench_serve.reference import NUM_FIELDS, NUM_NUMBERS
from service.contract.schema import FIRST_ID, UNKNOWN_ID
from service.contract.store import ModelStore
from service.scoring.runtime import onnxruntime
from service.sockets import bind

ITEM_FIELDS = [f"i{n}" for n in range(1, NUM_FIELDS)]
USER_FIELDS = [f"u{n}" for n in range(1, NUM_FIELDS)]
NUMBERS = [f"x{n}" for n in range(NUM_NUMBERS)]


class ItemFeatures(BaseModel):
    """Features of a candidate."""

    i1: str
    i2: str
    i3: str
    i4: str
    i5: str
    i6: str
    i7: str
    x0: float
    x1: float
    x2: float
    x3: float


class Item(BaseModel):
    """A candidate."""

    id: str
    features: ItemFeatures


class UserFeatures(BaseModel):
    """Features of the user."""

    u1: str
    u2: str
    u3: str
    u4: str
    u5: str
    u6: str
    u7: str


class User(BaseModel):
    """Whom the candidates are for."""

    id: str
    features: UserFeatures


class Request(BaseModel):
    """A domain, a user, N candidates."""

    domain: str
    user: User
    items: list[Item]


class Reply(BaseModel):
    """Click probabilities in the order of the items."""

    scores: list[float]


def create_app(store: Path) -> FastAPI:
    """The app, with its model loaded."""
    bundle = ModelStore(store).open("stable", verify=False)
    schema = json.loads((bundle.path / "schema.json").read_text())
    ids = {
        name: {value: FIRST_ID + row for row, value in enumerate(encoder["values"])}
        for name, encoder in schema["encoders"].items()
        if encoder["type"] == "vocabulary"
    }
    domains = {name: index for index, name in enumerate(schema["domains"])}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    graph = bundle.manifest.graphs["whole"]
    session = onnxruntime.InferenceSession(str(bundle.file(graph.file)), options)
    app = FastAPI()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/score")
    def score(request: Request) -> Reply:
        if request.domain not in domains:
            raise HTTPException(404, "unknown domain")
        user = request.user.features.model_dump()
        user_ints = [ids["user_id"].get(request.user.id, UNKNOWN_ID)]
        user_ints += [ids[name].get(user[name], UNKNOWN_ID) for name in USER_FIELDS]
        item_ints, item_floats = [], []
        for item in request.items:
            features = item.features.model_dump()
            row = [ids["item_id"].get(item.id, UNKNOWN_ID)]
            row += [ids[name].get(features[name], UNKNOWN_ID) for name in ITEM_FIELDS]
            item_ints.append(row)
            item_floats.append([features[name] for name in NUMBERS])
        inputs = {
            "user_ints": np.array([user_ints], np.int32),
            "domain": np.array([domains[request.domain]], np.int64),
            "item_ints": np.array(item_ints, np.int32),
            "item_floats": np.array(item_floats, np.float32),
            "request_index": np.zeros(len(item_ints), np.int64),
        }
        scores = session.run([graph.output], inputs)[0]
        return Reply(scores=scores.tolist())

    return app


def serve(store: Path, port: int) -> None:
    """One process, on a socket of its own."""
    config = uvicorn.Config(create_app(store), log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[bind("127.0.0.1", port)])


def main() -> None:
    """Serve with several processes until they are stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=serve, args=(options.store, options.port)) for _ in range(options.processes)
    ]
    for worker in workers:
        worker.start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: [worker.terminate() for worker in workers])
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()
