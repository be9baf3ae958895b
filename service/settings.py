"""Every setting of the service, declared once.

Read from the environment (`CTR_PORT=9000`); `ctr-serve run` options override it. Units are in the
names. Unknown `CTR_` variables are refused, so that a typo cannot silently do nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "CTR_"
ADMIN_PORT = 8001
CGROUP_QUOTA_FILE = Path("/sys/fs/cgroup/cpu.max")

Ratio = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseSettings):
    """Settings of one serving process (or of all workers of one `ctr-serve run`)."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    store: Path = Field(default=Path("models"), description="Folder of the model store.")
    alias: str = Field(default="stable", description="Alias (or bundle id, or its prefix) to serve.")
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    workers: int = Field(
        default=1, ge=1, le=256, description="Processes, each with its own socket and graphs."
    )
    device: Literal["auto", "cpu", "cuda", "tensorrt"] = Field(
        default="auto",
        description="Where graphs run; `auto` takes the best that machine and graph allow, others are had or "
        "refused.",
    )
    deadline_ms: int = Field(
        default=500, ge=1, description="Time a request may take before it is answered 504."
    )
    max_body_bytes: int = Field(default=2 << 20, ge=1, description="Largest request body.")
    max_items: int = Field(default=1000, ge=1, description="Most candidates in one request.")
    max_string_length: int = Field(default=256, ge=1, description="Longest string anywhere in a request.")
    max_history: int = Field(default=1000, ge=1, description="Longest history or list value of one feature.")
    max_inflight: int = Field(default=64, ge=1, description="Requests per worker before new ones get 429.")
    inline_max_ms: float = Field(
        default=3.0, ge=0, description="Graph runs expected to be shorter stay on the event loop."
    )
    batch_max_rows: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="Most candidates in one run of several requests, of what is queued for a graph; 0: each "
        "request runs singly.",
    )
    ort_threads: int = Field(
        default=0, ge=0, description="Threads for graph runs off the event loop; 0: CPU quota / workers."
    )
    unknown_domain: Literal["manifest", "reject", "zero_shot"] = Field(
        default="manifest", description="What an unlisted domain gets; `manifest` leaves it to the bundle."
    )
    alias_poll_s: float = Field(
        default=2.0,
        ge=0,
        description="Time between looks at the store's aliases, whose change loads another bundle; 0: never.",
    )
    max_bundles_bytes: int = Field(
        default=0,
        ge=0,
        description="Most estimated memory of all open bundles of a worker, the one to be replaced included; "
        "0: no bound.",
    )
    routing_file: Path | None = Field(
        default=None, description="YAML of experiments and routing by maturity; none: all by the alias."
    )
    routing_poll_s: float = Field(
        default=2.0, gt=0, description="Time between looks at the routing file and the aliases of its arms."
    )
    admin_tokens_file: Path | None = Field(
        default=None, description="Bearer tokens of the admin API, one a line; unset: there is none."
    )
    admin_host: str = Field(default="127.0.0.1", description="Address the admin API listens on.")
    admin_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Port of the admin API; 8001 if only its tokens are given.",
    )
    tokens_file: Path | None = Field(
        default=None, description="Bearer tokens for scoring and feedback, one a line; unset: open to all."
    )
    golden_tolerance: float = Field(
        default=1e-5, gt=0, description="Largest difference from a golden score before a bundle is refused."
    )
    check_ids: bool = Field(default=False, description="Debug: range-check every id before each graph run.")
    feature_source: Literal["memory", "redis", "redis_cluster"] = Field(
        default="memory", description="Where stored features are: in the bundle, or in Redis."
    )
    redis_url: str = Field(
        default="redis://127.0.0.1:6379/0",
        description="Redis to read features from; for a cluster one or more servers of it, with commas.",
    )
    redis_key_prefix: str = Field(
        default="ctr", pattern=r"^[A-Za-z0-9_.:-]{1,64}$", description="First part of every key in Redis."
    )
    redis_connections: int = Field(
        default=2,
        ge=1,
        le=64,
        description="Connections per worker and Redis server; requests share them.",
    )
    redis_connect_timeout_ms: int = Field(default=500, ge=1, description="Time to connect to a Redis server.")
    feature_timeout_ms: int = Field(
        default=50,
        ge=1,
        description="Longest wait for stored features; then the request is answered with defaults, degraded.",
    )
    feature_user_max_age_s: float = Field(
        default=0.0, ge=0, description="Age after which a user's stored features are stale; 0: never."
    )
    feature_item_max_age_s: float = Field(
        default=0.0, ge=0, description="Age after which an item's stored features are stale; 0: never."
    )
    feature_stale: Literal["use", "default"] = Field(
        default="use", description="What scores a stale row: itself, or the default row."
    )
    near_cache_user_bytes: int = Field(
        default=32 << 20, ge=0, description="Bound on users cached by each worker; 0: none are."
    )
    near_cache_item_bytes: int = Field(
        default=96 << 20, ge=0, description="Bound on items cached by each worker; 0: none are."
    )
    near_cache_ttl_s: float = Field(
        default=30.0, ge=0, description="Longest life of a cached row: how late an update may be seen."
    )
    near_cache_missing_ttl_s: float = Field(
        default=5.0, ge=0, description="Longest time an id is remembered not to be stored."
    )
    near_cache_jitter_ratio: Ratio = Field(
        default=0.2, description="Lives of cached rows are shortened at random by up to this share."
    )
    breaker_failures: int = Field(
        default=5, ge=1, description="Failed calls, among the last ones, after which Redis is left alone."
    )
    breaker_window: int = Field(default=20, ge=1, description="Calls to Redis that the breaker remembers.")
    breaker_open_s: float = Field(
        default=1.0, gt=0, description="Time Redis is left alone before one call tries it again."
    )
    drain_pause_s: float = Field(
        default=3.0,
        ge=0,
        description="After SIGTERM: time to keep serving while not ready, for balancers to notice.",
    )
    drain_timeout_s: float = Field(
        default=20.0, gt=0, description="After the pause: time for requests in flight to finish."
    )
    exposure_dir: Path | None = Field(
        default=None, description="Folder for records of scored requests; unset: none are kept."
    )
    exposure_sample_ratio: Ratio = Field(default=1.0, description="Share of scored requests recorded.")
    exposure_queue: int = Field(
        default=2000, ge=1, description="Exposures waiting to be written, above which new ones are dropped."
    )
    exposure_flush_s: float = Field(
        default=1.0, gt=0, le=60, description="Longest time an exposure waits to be written and synced."
    )
    feedback_dir: Path | None = Field(
        default=None, description="Folder for what POST /feedback takes; unset: it answers 404."
    )
    event_segment_bytes: int = Field(
        default=64 << 20, ge=1, description="Size after which an exposure or feedback file is closed."
    )
    event_segment_s: float = Field(
        default=300.0, gt=0, description="Age after which an exposure or feedback file is closed."
    )
    slow_request_ms: float = Field(
        default=250.0,
        ge=0,
        description="Time from which a request is logged with its stages, at most one a second; 0: none are.",
    )
    otlp_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^/\s]+",
        description="OpenTelemetry collector (OTLP over HTTP) that gets traces; unset: none are made.",
    )
    trace_ratio: Ratio = Field(
        default=0.01, description="Share of requests traced of those whose caller does not say."
    )
    max_domain_labels: int = Field(
        default=100, ge=0, description="Domains with a metric label of their own; the rest count as `other`."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe log record to write."
    )
    access_log_ratio: Ratio = Field(
        default=0.0, description="Share of requests written to the log; failures of ours always are."
    )

    @field_validator("redis_url")
    @classmethod
    def _readable(cls, value: str) -> str:
        for url in map(str.strip, value.split(",")):
            if not url.startswith(("redis://", "rediss://", "unix://")):
                raise ValueError("must start with redis://, rediss:// or unix://")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.breaker_window < self.breaker_failures:
            raise ValueError(
                f"breaker_window ({self.breaker_window}) must be at least breaker_failures "
                f"({self.breaker_failures})"
            )
        if self.admin_port is not None and self.admin_tokens_file is None:
            raise ValueError(
                f"admin_port ({self.admin_port}) needs admin_tokens_file: the admin API takes no request "
                "without a token"
            )
        if self.feature_source == "redis" and len(self.redis_urls()) > 1:
            raise ValueError("redis_url must name one server unless feature_source is redis_cluster")
        return self

    @property
    def admin_address_port(self) -> int:
        """Port of the admin API, where it is on."""
        return ADMIN_PORT if self.admin_port is None else self.admin_port

    def redis_urls(self) -> list[str]:
        """Servers to connect to first."""
        return [url.strip() for url in self.redis_url.split(",")]

    def threads(self) -> int:
        """Threads of one worker's pool: as set, or its share of the CPU quota, at least 1."""
        return self.ort_threads or max(1, cpu_quota() // self.workers)


def cpu_quota(quota_file: Path = CGROUP_QUOTA_FILE) -> int:
    """CPUs this process may use: the cgroup quota (rounded up), bounded by its affinity."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = quota_file.read_text().split()
    except (OSError, ValueError):  # cgroup v1 or none: the affinity is all that is known
        return allowed
    if quota == "max":
        return allowed
    return max(1, min(allowed, math.ceil(int(quota) / int(period))))


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Names with our prefix that no setting answers to, sorted."""
    known = {(PREFIX + name).upper() for name in Settings.model_fields}
    return sorted(
        name for name in environment if name.upper().startswith(PREFIX) and name.upper() not in known
    )
