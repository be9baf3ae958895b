"""Requests of infer over the small bundle."""

import numpy as np

from service.contract.encode import EntityEncoder
from service.contract.schema import Entity
from tests.support.asgi import ask, with_app

DATATYPES = {"int32": "INT32", "int64": "INT64", "float32": "FP32"}


def arrays(small, domains, user_rows, item_rows, request_index, graph="whole"):
    """Inputs of a graph for stored users and items, by the manifest's names."""
    context = EntityEncoder(small.schema, Entity.CONTEXT).defaults(len(domains))
    by_source = {
        "user.ints": small.users.ints[user_rows],
        "user.floats": small.users.floats[user_rows],
        "item.ints": small.items.ints[item_rows],
        "item.floats": small.items.floats[item_rows],
        "context.ints": context.ints,
        "context.floats": context.floats,
        "domain": np.array([small.schema.domain_index(d) for d in domains]),
        "request_index": np.array(request_index),
    }
    inputs = small.bundle.manifest.graphs[graph].inputs
    return {e.name: by_source[e.source].astype(e.dtype) for e in inputs}


def json_body(values, **changes):
    """A request with nested JSON data."""
    inputs = [
        {"name": name, "shape": list(a.shape), "datatype": DATATYPES[str(a.dtype)], "data": a.tolist()}
        for name, a in values.items()
    ]
    return {"inputs": inputs, "parameters": {"graph": "whole"}, **changes}


def infer(small, body, *headers, path="/v2/models/small/infer", store=None, **settings):
    return with_app(store or small.store, lambda app: ask(app, body, path=path, headers=headers), **settings)


def changed(values, tensor, /, **entry):
    body = json_body(values)
    place = next(i for i, e in enumerate(body["inputs"]) if e["name"] == tensor)
    body["inputs"][place] |= entry
    return body


def one_row(small):
    return arrays(small, ["home"], [3], [1], [0])


def ids_with(small, name, row, column, value):
    rows = one_row(small)[name].tolist()
    rows[row][column] = value
    return rows
