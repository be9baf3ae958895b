"""Settings, errors and metrics are each declared in one place and keep their rules."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

import service
from service.errors import ANSWERED, InternalError, ServiceError, TooLong
from service.settings import Settings, cpu_quota, unknown_variables
from service.telemetry.metrics import Metrics


def every_error(base=ServiceError):
    for error in base.__subclasses__():
        yield error
        yield from every_error(error)


def test_every_error_has_its_own_code_and_is_documented():
    assert set(every_error()) == set(ANSWERED)
    assert len({error.code for error in ANSWERED}) == len(ANSWERED)
    assert all(400 <= error.status < 600 and re.fullmatch(r"[a-z_]+", error.code) for error in ANSWERED)


def test_problem_documents_leave_out_what_they_do_not_know():
    assert set(InternalError("x").problem("r")) == {"type", "title", "status", "code", "detail", "request_id"}
    assert TooLong("x", field="$.a", limit=1, value=2).problem("r") == {
        "type": "urn:ctr-serve:problem:too_long",
        "title": "Value too long",
        "status": 422,
        "code": "too_long",
        "detail": "x",
        "request_id": "r",
        "field": "$.a",
        "limit": 1,
        "value": 2,
    }


def test_domains_beyond_the_cap_share_one_label():
    metrics = Metrics(max_domain_labels=1)
    mine = metrics.for_bundle(model="m", version="v", alias="a", mean_scores={"big": 0.1, "small": 0.1})
    for domain in ("big", "small", "unlisted"):
        reads = {"user_reads": (1, 0, 0, 0, 0), "item_reads": (1, 0, 1, 0, 0)}
        mine.scored(domain=domain, score_sum=0.5, num_items=2, **reads)
    text = metrics.render().decode()
    assert 'ctr_domain_candidates_total{domain="big"} 2.0' in text
    assert 'ctr_domain_candidates_total{domain="other"} 4.0' in text
    assert "unlisted" not in text


def test_every_setting_has_one_sentence():
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_settings_come_from_the_environment_and_typos_are_found(monkeypatch):
    monkeypatch.setenv("CTR_MAX_ITEMS", "7")
    assert Settings().max_items == 7
    assert unknown_variables({"CTR_MAX_ITEMS": "7", "CTR_MAX_ITEM": "7", "PATH": ""}) == ["CTR_MAX_ITEM"]


@pytest.mark.parametrize(
    ("text", "expected"), [("max 100000", None), ("150000 100000", 2), ("10000 100000", 1)]
)
def test_cpu_quota_is_rounded_up_and_bounded(tmp_path, text, expected, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / "cpu.max").write_text(text)
    assert cpu_quota(tmp_path / "cpu.max") == (8 if expected is None else expected)
    assert cpu_quota(tmp_path / "missing") == 8


def test_an_admin_port_without_tokens_is_refused(tmp_path):
    message = r"admin_port \(9000\) needs admin_tokens_file: the admin API takes no request without a token"
    with pytest.raises(ValidationError, match=message):
        Settings(admin_port=9000)
    assert Settings(admin_tokens_file=tmp_path / "tokens").admin_address_port == 8001


def test_onnxruntime_is_imported_in_one_place_which_first_turns_its_telemetry_off():
    root = Path(service.__file__).parents[1]
    folders = ("service", "training", "export", "loadtests", "tests")
    importing = re.compile(r"^\s*(?:import onnxruntime|from onnxruntime)", re.MULTILINE)
    files = [path for folder in folders for path in (root / folder).rglob("*.py")]
    found = {str(path.relative_to(root)) for path in files if importing.search(path.read_text())}
    assert found == {"service/scoring/runtime.py"}
