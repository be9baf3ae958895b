"""HIER from a raw log to `/score`: pre-training, a new domain onto a running service, refits, blending."""

import asyncio
import json
import math
import shutil
import sys
import time
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

from export.package import BuildOptions, build_bundle
from export.run_folder import RunFolder
from service.cli import app as serve_cli
from service.contract.store import ModelStore
from tests.support.asgi import ask, with_app
from tests.support.hier import CONFIG, write_items, write_labels, write_raw
from tests.support.process import running
from tests.support.redis_server import redis_server
from tests.support.tokens import BEARER, write_tokens
from training.cli import app
from training.data.prepare import prepare
from training.data.prepared import PreparedDataset
from training.hier.config import load_pretrain_config
from training.hier.domains import OnboardedDomain
from training.hier.errors import GraphError, OnboardError
from training.hier.onboard import onboard, open_run
from training.hier.ragged import Ragged
from training.hier.representation import Representation
from training.hier.run import run_pretraining
from training.hier.serving import serving_schema, stored_factors

# Seven of the domain's own, and one that the sources show too.
ITEMS = [*({"id": f"n{v}"} for v in range(7)), {"id": "i3"}]
POLL_S = 0.1


def publish(run, store, alias):
    options = BuildOptions(alias=alias, name="hier")
    return build_bundle(RunFolder.open(run), ModelStore(store), options, progress=lambda step: None)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_raw(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "hier.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def pretrained(raw, config, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "hier"
    app(["pretrain", "--config", str(config), "--data", str(raw), "--out", str(out)], standalone_mode=False)
    return out


@pytest.fixture
def run(pretrained, tmp_path):
    return shutil.copytree(pretrained, tmp_path / "run", ignore=shutil.ignore_patterns("source"))


@pytest.fixture
def items(tmp_path):
    return write_items(tmp_path / "items.parquet", known=20, strange=5)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def expected_scores(run, domain, user_id):
    """Probabilities of the domain's first items, by U . V, the rates and the domain's head and line."""
    config, representation = open_run(run)
    schema = serving_schema(representation, (), max_entities=config.graph.max_entities)
    place, width = representation.item_ids.index("i3"), config.model.width
    shared = representation.item_sets.take(np.array([place]))[0][0].tolist()
    sets = Ragged.of([domain.items.get(item["id"], shared) for item in ITEMS])
    factors = stored_factors(representation, config.model, schema, sets)
    user = representation.user_ids.index(user_id) if user_id in representation.user_ids else None
    left = factors.mean_user if user is None else factors.users[user]
    elsewhere = {"i3": float(representation.item_rates[place])}
    assert elsewhere["i3"] != 0
    found = []
    for item, right in zip(ITEMS, factors.items, strict=True):
        inner, path = float(left[:width] @ right[:width]), float(left[width:] @ right[width:])
        inputs = [
            inner + path,
            inner,
            path,
            math.log1p(domain.item_clicks.get(item["id"], 0)),
            1.0,
            elsewhere.get(item["id"], 0.0),
            0.0 if user is None else float(representation.user_rates[user]),
            domain.item_rates.get(item["id"], 0.0),
            domain.user_rates.get(user_id, 0.0),
            *(left[:width] * right[:width]).tolist(),
        ]
        logit = sum(weight * value for weight, value in zip(domain.head, inputs, strict=True))
        found.append(sigmoid(domain.scale * logit + domain.bias))
    return found


def body(user_id, items=ITEMS, domain="fresh", **user):
    return {"domain": domain, "user": {"id": user_id, **user}, "items": items}


def score(client, user_id, items=ITEMS, domain="fresh"):
    return client.post("/score", json=body(user_id, items, domain))


def entities_of(run, user_id):
    """A stored user's entities, weights and rate as a request would tell them."""
    found = Representation.load(run)
    row = found.user_ids.index(user_id)
    ids, weights = found.user_entities[row], found.user_weights[row]
    names = [found.vocabulary.names[i - 2] for i in ids[ids > 1].tolist()]
    told = {"ids": names, "weights": weights[ids > 1].tolist()}
    return {"user_entities": told, "user_elsewhere": float(found.user_rates[row])}


class Journey(NamedTuple):
    """A domain onboarded by the command while a service ran: what was asked before and after.

    The service first runs `stable`, which has the domain `warm` after 400 labels; `hier`, which the command
    publishes, has it by its prior again, beside the new domain.
    """

    run: Path
    store: Path
    items: Path
    warm: tuple[OnboardedDomain, OnboardedDomain]
    before: list[int]
    replies: dict[str, httpx.Response]
    restarted: bool


@pytest.fixture(scope="module")
def journey(pretrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("journey")
    run = shutil.copytree(pretrained, folder / "run", ignore=shutil.ignore_patterns("source"))
    items, store = write_items(folder / "items.parquet", known=20, strange=5), folder / "models"
    labels = write_labels(folder / "labels.csv", rows=400, items=20)
    prior = onboard(run, "warm", items, prior_rate=0.04)
    later = onboard(run, "warm", items, prior_rate=0.04, labels=labels)
    ModelStore(store).set_alias("hier", publish(run, store, "stable").bundle_id)
    onboard(run, "warm", items, prior_rate=0.04)
    with (
        running(store, folder, "--alias", "hier", CTR_ALIAS_POLL_S=str(POLL_S)) as service,
        httpx.Client(base_url=service.url, timeout=10) as client,
    ):
        service.wait_until("/health/ready", 200)
        before = [score(client, "u1").status_code, score(client, "u1", [{"id": "i1"}], "d0").status_code]
        told = ["onboard", "--run", str(run), "--domain", "fresh", "--items", str(items)]
        app([*told, "--store", str(store), "--prior-ctr", "0.04"], standalone_mode=False)
        until = time.monotonic() + 60
        while score(client, "u1").status_code == 404 and time.monotonic() < until:
            time.sleep(POLL_S)
        tags = pl.read_parquet(items).filter(pl.col("item_id") == "n0")["tags"].to_list()[0]
        named = {"item_entities": [f"tags:{tag}" for tag in tags]}
        replies = {
            "known": score(client, "u1"),
            "cold": score(client, "nobody"),
            "unregistered": score(client, "u1", [{"id": "new", "features": named}]),
            "told": client.post("/score", json=body("nobody", features=entities_of(run, "u1"))),
        }
        restarted = service.process.poll() is not None
        return Journey(run, store, items, (prior, later), before, replies, restarted)


def test_a_domain_onboarded_while_the_service_runs_is_scored_without_a_restart(journey, tmp_path):
    assert journey.before == [404, 200]
    assert not journey.restarted
    scores = {name: reply.json()["scores"] for name, reply in journey.replies.items()}
    run = shutil.copytree(journey.run, tmp_path / "run")
    domain = onboard(run, "fresh", journey.items, prior_rate=0.04)
    assert scores["known"] == pytest.approx(expected_scores(run, domain, "u1"), abs=1e-5)
    assert scores["cold"] == pytest.approx(expected_scores(run, domain, "nobody"), abs=1e-5)
    # An item that nobody registered is told by its attributes, a user by what she clicked.
    assert scores["told"] == pytest.approx(scores["known"], abs=1e-6)
    assert scores["unregistered"] == pytest.approx(scores["known"][:1], abs=1e-6)


def test_a_domain_onboarded_with_features_in_redis_is_scored_once_they_are_loaded(journey, tmp_path):
    """The new bundle goes to an alias of its own, its snapshot to Redis, and then the alias moves."""
    store = ModelStore(journey.store)
    store.set_alias("live", store.aliases()["stable"])

    with redis_server(tmp_path) as server:

        def load(alias):
            options = ["--store", str(journey.store), "--alias", alias, "--redis-url", server.url]
            told = CliRunner().invoke(serve_cli, ["features", "load", *options])
            assert told.exit_code == 0, told.output

        async def explained(application, user, domain):
            return await ask(application, body(user, domain=domain) | {"explain": True}, headers=[BEARER])

        async def move_on(application):
            before = [(await explained(application, "u1", domain))[0] for domain in ("d0", "fresh")]
            # The command runs a loop of its own.
            await asyncio.to_thread(load, "hier")
            store.set_alias("live", store.aliases()["hier"])
            done = await application.serving.reload()
            replies = [await explained(application, user, "fresh") for user in ("u1", "nobody")]
            return before, done.result, replies

        settings = {"feature_source": "redis", "redis_url": server.url, "feature_timeout_ms": 2000}
        settings |= {"tokens_file": write_tokens(tmp_path)}
        load("stable")
        told = with_app(journey.store, move_on, alias="live", alias_poll_s=0, **settings)
    before, result, replies = told
    assert before == [200, 404]
    assert result == "loaded"
    # Who nobody knows is scored as the mean user, and the reply says so to who may ask.
    for (status, _, reply), name, stored in zip(
        replies, ("known", "cold"), ("fresh", "missing"), strict=True
    ):
        assert status == 200, reply
        assert reply["degraded"] == []
        assert reply["explain"]["user"]["status"] == stored
        assert reply["scores"] == pytest.approx(journey.replies[name].json()["scores"], abs=1e-6)


def test_the_mean_score_of_a_fresh_domain_is_the_prior(run, items):
    domain = onboard(run, "fresh", items, prior_rate=0.04)
    assert domain.mean_score == pytest.approx(0.04, abs=1e-6)
    assert (domain.stage, domain.num_rows, domain.coverage) == ("prior", 0, 0.8)
    rates = [source.rate for source in Representation.load(run).sources]
    assert onboard(run, "fresh", items).mean_score == pytest.approx(float(np.median(rates)), abs=1e-6)


def test_clicks_refit_the_line_and_the_head_and_blend_the_domain_in(journey, tmp_path):
    store, (fresh, later) = journey.store, journey.warm
    assert (later.stage, later.num_rows, later.order) == ("bias", 400, fresh.order)
    assert later.head != fresh.head
    assert later.mean_score == pytest.approx(0.3, abs=0.05)
    assert min(len(later.item_clicks), len(later.item_rates), len(later.user_rates)) >= 20
    bundle = ModelStore(store).open("stable")
    assert bundle.manifest.domains["warm"].num_train_rows == 400
    routing = tmp_path / "routing.yaml"
    maturity = {"zero_shot": "hier", "few_shot": "hier", "prior_rows": 2000.0}
    routing.write_text(yaml.safe_dump({"version": 1, "maturity": maturity}))

    def asked(alias, domain="warm", **settings):
        async def ask_once(application):
            status, _, reply = await ask(application, body("u1", domain=domain))
            assert status == 200, reply
            return np.array(reply["scores"]), reply["model"]["alias"]

        return with_app(store, ask_once, alias=alias, **settings)

    by_prior, by_clicks = asked("hier")[0], asked("stable")[0]
    np.testing.assert_allclose(by_prior, expected_scores(journey.run, fresh, "u1"), atol=1e-5)
    np.testing.assert_allclose(by_clicks, expected_scores(journey.run, later, "u1"), atol=1e-5)
    blended, _ = asked("stable", routing_file=routing)
    weight = 2000 / (2000 + 400)
    logit = weight * np.log(by_prior / (1 - by_prior)) + (1 - weight) * np.log(by_clicks / (1 - by_clicks))
    np.testing.assert_allclose(blended, 1 / (1 + np.exp(-logit)), atol=1e-5)
    # A default bundle without the domain leaves it to the zero-shot one.
    zero_shot, alias = asked("stable", "fresh", routing_file=routing)
    assert alias == "hier"
    np.testing.assert_allclose(zero_shot, asked("hier", "fresh")[0], atol=1e-7)


def test_what_cannot_be_onboarded_is_refused(run, items, tmp_path):
    with pytest.raises(
        OnboardError, match=r"domain 'fresh': 50\.0% of its 40 items have an entity .* 60% are"
    ):
        onboard(run, "fresh", write_items(tmp_path / "few.parquet", known=20, strange=20))
    with pytest.raises(OnboardError, match="domain 'd0' is one of the sources"):
        onboard(run, "d0", items)
    with pytest.raises(OnboardError, match=r"domain '\.\./x' must match"):
        onboard(run, "../x", items)
    with pytest.raises(OnboardError, match="no finished `ctr-train pretrain`"):
        onboard(tmp_path, "fresh", items)
    assert not (run / "domains").exists()


def test_files_that_cannot_be_used_are_refused(run, items, tmp_path):
    def written(text, name="x.csv"):
        path = tmp_path / name
        path.write_text(text)
        return path

    for path, reason in (
        (tmp_path / "none.csv", "no such file"),
        (written("", "x.txt"), r"a file of type '\.txt'; allowed are .parquet, .csv and .jsonl"),
        (written("tags\nt1\n"), r"lacks the columns \['item_id'\]"),
    ):
        with pytest.raises(OnboardError, match=reason):
            onboard(run, "fresh", path)
    with pytest.raises(OnboardError, match="lists no items"):
        onboard(run, "fresh", written("item_id,tags\n"))
    with pytest.raises(OnboardError, match="lists item 'a' twice"):
        onboard(run, "fresh", written("item_id,tags\na,t1\na,t2\n"))
    with pytest.raises(OnboardError, match=r"column 'tags' holds 1\.5, which is no attribute"):
        onboard(run, "fresh", written('{"item_id": "a", "tags": 1.5}\n', "x.jsonl"))
    with pytest.raises(OnboardError, match="label 2 is neither 0 nor 1"):
        onboard(run, "fresh", items, labels=written("user_id,item_id,label\nu1,n1,2\n"))
    with pytest.raises(OnboardError, match="labels of item 'n99', which the items file does not list"):
        onboard(run, "fresh", items, labels=written("user_id,item_id,label\nu1,n99,1\n"))


def test_a_build_that_fails_is_told_and_moves_no_alias(run, items, tmp_path, monkeypatch):
    store, python = tmp_path / "models", tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\necho "$*" > {tmp_path}/asked\necho trace >&2\necho "no room" >&2\nexit 1\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    command = ["onboard", "--run", str(run), "--domain", "fresh", "--items", str(items)]
    with pytest.raises(OnboardError, match=r"ctr-export build of .* failed: no room$"):
        app([*command, "--store", str(store), "--alias", "next"], standalone_mode=False)
    asked = (tmp_path / "asked").read_text().split()
    assert asked == [
        *("-m", "export.cli", "build", str(run), "--store", str(store)),
        *("--alias", "next", "--name", "hier"),
    ]
    assert ModelStore(store).aliases() == {}


def test_sources_without_impressions_need_a_click_rate(run, items):
    record = run / "hier" / "representation.json"
    told = json.loads(record.read_text())
    told["sources"] = [source | {"rate": 1.0} for source in told["sources"]]
    record.write_text(json.dumps(told))
    with pytest.raises(OnboardError, match="have no impressions to take a click rate from: give --prior-ctr"):
        onboard(run, "fresh", items)


def test_names_in_a_csv_and_whole_names(run, tmp_path):
    path = tmp_path / "items.csv"
    path.write_text("item_id,tags,entities\na,t1|t2,\nb,,tags:t1|maker:m1\n")
    domain = onboard(run, "fresh", path)
    names = Representation.load(run).vocabulary.rows
    assert domain.items == {
        "a": sorted([names["tags:t1"], names["tags:t2"]]),
        "b": sorted([names["tags:t1"], names["maker:m1"]]),
    }


def test_domains_keep_their_place_and_their_version(run, items):
    onboard(run, "fresh", items)
    onboard(run, "fresher", items)
    onboard(run, "fresh", items)
    domains = RunFolder.open(run).schema.domains
    assert domains == ("d0", "d1", "d2", "fresh", "fresher")
    file = run / "domains" / "fresher.json"
    file.write_text(file.read_text().replace(Representation.load(run).version, "0" * 64))
    with pytest.raises(
        OnboardError, match=r"goes with representation 000000000000, .* onboard 'fresher' again"
    ):
        onboard(run, "fresh", items)
    file.write_text("[]")
    with pytest.raises(OnboardError, match="not an onboarded domain"):
        onboard(run, "fresh", items)


def test_tables_of_another_run_are_refused(run):
    record = run / "hier" / "representation.json"
    record.write_text(record.read_text().replace('"version": "', '"version": "00'))
    with pytest.raises(OnboardError, match="beside a record of"):
        Representation.load(run)


def test_clicks_of_a_held_out_domain_change_nothing(raw, config, pretrained, tmp_path):
    """All clicks of the target permuted, and all gone: not a bit of any vector or line changes."""
    settings = load_pretrain_config(config, ["hold_out=d1", "training.max_steps=10"])
    versions = []
    for kind in ("as they are", "permuted", "gone"):
        folder = tmp_path / kind.replace(" ", "_")
        shutil.copytree(raw, folder)
        log = pl.read_parquet(folder / "interactions.parquet")
        target = pl.col("domain") == "d1"
        if kind == "permuted":
            shuffled = pl.col("label").reverse()
            log = log.with_columns(pl.when(target).then(shuffled).otherwise(pl.col("label")).alias("label"))
        if kind == "gone":
            log = log.with_columns(pl.when(target).then(0).otherwise(pl.col("label")).alias("label"))
        log.write_parquet(folder / "interactions.parquet")
        prepared = prepare(folder, tmp_path / f"prepared_{kind}")
        out = tmp_path / f"run_{kind}"
        run_pretraining(prepared, settings, out, data=None, told=lambda step, ndcg: None)
        found = Representation.load(out)
        lines = [(source.name, source.scale, source.bias) for source in found.sources]
        users = found.user_ids, found.user_entities.tobytes(), found.user_weights.tobytes()
        versions.append((found.version, lines, users))
    assert versions[0] == versions[1] == versions[2]
    assert "d1" not in [name for name, _, _ in versions[0][1]]
    with pytest.raises(GraphError, match="hold_out is 'd9'; the data have d0, d1, d2"):
        run_pretraining(
            PreparedDataset.open(pretrained / "source"),
            load_pretrain_config(config, ["hold_out=d9"]),
            tmp_path / "none",
            data=None,
            told=lambda step, ndcg: None,
        )
