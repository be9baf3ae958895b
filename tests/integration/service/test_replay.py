"""`ctr-serve replay` end to end: exposures of a served app against the same bundle and another one."""

import asyncio
import csv
import json
import re

import pytest
from typer.testing import CliRunner

from service.cli import app as command
from service.settings import Settings
from tests.support.redis_app import running_app
from tests.support.routing import body, build_three, experiment, reply_of, write_routing

REQUESTS = 30


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A store of three bundles, and a folder of exposures of an experiment on two of them."""
    folder = tmp_path_factory.mktemp("replay")
    bundles = build_three(folder / "store")
    routing = write_routing(folder / "routing.yaml", experiment())
    settings = Settings(
        store=folder / "store", routing_file=routing, exposure_dir=folder / "exposures", exposure_flush_s=0.05
    )

    async def serve():
        async with running_app(settings) as app:
            for n in range(REQUESTS):
                items = [{"id": f"i{(7 * n + k) % 120}"} for k in range(5)]
                asked = body(
                    f"u{n % 25}", "home" if n % 3 else "music", items=items, context={"hour": n % 24}
                )
                await reply_of(app, asked)
            own = [{"id": "i1", "features": {"price": 99.0}}, {"id": "i2"}]
            await reply_of(app, body("u1", "music", items=own))

    asyncio.run(serve())
    return folder, bundles


def run(folder, *options):
    result = CliRunner().invoke(
        command, ["replay", str(folder / "exposures"), "--store", str(folder / "store"), *options]
    )
    return result.exit_code, re.sub(r"\s+", " ", result.output)


def by_group(rows):
    return {(row["domain"], row["arm"]): row for row in rows}


def test_the_same_bundle_gives_the_same_scores_and_another_does_not(logged, tmp_path):
    folder, bundles = logged
    out = tmp_path / "replay.json"
    code, text = run(folder, "--bundle", "stable", "--features", "same", "--out", str(out))
    whole = json.loads(out.read_bytes())
    found = by_group(whole["groups"])
    replayed = sum(row["requests"] for row in found.values())

    assert code == 0, text
    assert whole["bundle"] == bundles["stable"].bundle.bundle_id
    assert set(found) == {("home", "ab/control"), ("music", "none")}
    for row in found.values():
        assert row["max_abs_difference"] == 0.0
        assert row["mean_rank_correlation"] == pytest.approx(1.0)
        assert row["same_features"] == row["requests"]
    # Left out: the one that brought a feature of its own, and those scored by `canary` with its own snapshot.
    assert whole["requests"] == replayed
    assert whole["left_out"] == {"features_changed": REQUESTS + 1 - replayed}
    assert f"{replayed} requests replayed with bundle {whole['bundle'][:12]}" in text
    assert f"not replayed: {REQUESTS + 1 - replayed} features_changed" in text


def test_tolerance_decides_the_exit_code(logged):
    folder, bundles = logged
    code, text = run(folder, "--alias", "stable", "--tolerance", "1e-6")
    assert code == 1
    assert re.search(r"scores differ by up to [0-9.]+, more than 1e-06", text)
    assert run(folder, "--bundle", bundles["canary"].bundle.bundle_id[:8], "--tolerance", "1")[0] == 0


def test_the_table_may_be_written_as_csv(logged, tmp_path):
    folder, _ = logged
    out = tmp_path / "replay.csv"
    assert run(folder, "--bundle", "canary", "--out", str(out))[0] == 0
    with out.open(newline="") as file:
        found = by_group(csv.DictReader(file))
    assert float(found[("home", "ab/treatment")]["max_abs_difference"]) == 0.0
    assert float(found[("home", "ab/control")]["max_abs_difference"]) > 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "x.txt"], "--out must end in .csv or .json, got x.txt"),
        (["--features", "none"], "--features must be any or same, got 'none'"),
        (["--bundle", "nowhere"], "has no bundle 'nowhere'"),
        (["--max-items", "1"], "no record could be replayed"),
    ],
)
def test_what_cannot_be_done_ends_with_exit_code_1(logged, options, message):
    code, text = run(logged[0], *options)
    assert code == 1
    assert message in text


def test_a_folder_without_exposures_is_refused(logged, tmp_path):
    (tmp_path / "exposures").mkdir()
    (tmp_path / "store").symlink_to(logged[0] / "store")
    code, text = run(tmp_path)
    assert code == 1
    assert "no exposures-*.jsonl file there" in text
