"""What a PromQL expression of ours speaks of, held to the metric table.

No parser of the whole language: it finds metrics of ours, the labels they are chosen or grouped by, and
whether counters are turned into rates.
"""

import re

from service.telemetry.metric_table import TABLE

METRICS = {row.name: row for row in TABLE}
ADDED = {"job", "instance", "namespace", "pod"}
"""Labels that Prometheus adds to what it scrapes."""
SERIES_OF_HISTOGRAMS = ("_bucket", "_sum", "_count")
_METRIC = re.compile(r"\b(ctr_[a-zA-Z0-9_]*)(?:\{([^}]*)\})?(\[[^\]]*\])?")
_LABEL = re.compile(r'([a-zA-Z_]+)\s*(?:=~|!~|!=|=)\s*"')
_GROUPING = re.compile(r"\b(?:by|on|ignoring|without|group_left|group_right)\s*\(([^)]*)\)")
_OVER_TIME = r"\b(?:rate|increase|changes|delta|(?:max|min|avg)_over_time)\(\s*$"


def declared(name: str) -> tuple[str, set[str]]:
    """Metric of the table that a series belongs to, and the labels it has there."""
    if name in METRICS and METRICS[name].kind != "histogram":
        return name, set(METRICS[name].labels)
    for ending in SERIES_OF_HISTOGRAMS:
        base = name.removesuffix(ending)
        if base != name and base in METRICS and METRICS[base].kind == "histogram":
            return base, set(METRICS[base].labels) | ({"le"} if ending == "_bucket" else set())
    raise LookupError(f"'{name}' is no series of the metric table")


def names(expr: str) -> set[str]:
    """Metrics of the table that an expression uses."""
    return {declared(found[1])[0] for found in _METRIC.finditer(expr)}


def problems(expr: str) -> list[str]:
    """What is wrong with an expression; empty when nothing is."""
    found, labels = [], set(ADDED)
    for metric in _METRIC.finditer(expr):
        try:
            base, own = declared(metric[1])
        except LookupError as error:
            found.append(str(error))
            continue
        labels |= own
        odd = set(_LABEL.findall(metric[2] or "")) - own - ADDED
        found += [f"{metric[1]} has no label '{name}'" for name in sorted(odd)]
        over_time = re.search(_OVER_TIME, expr[: metric.start()]) is not None
        if over_time != bool(metric[3]):
            found.append(f"{metric[1]}: a range and a function over it go together")
        if METRICS[base].kind != "gauge" and not over_time:
            found.append(f"{metric[1]} is counted up, so only its rate or increase says something")
    grouped = {part.strip() for group in _GROUPING.findall(expr) for part in group.split(",")} - {""}
    found += [f"no metric here has the label '{name}' to group by" for name in sorted(grouped - labels)]
    quantiles = expr.count("histogram_quantile(")
    with_buckets = len(re.findall(r"\bby\s*\([^)]*\ble\b[^)]*\)\s*\(\s*rate\(ctr_[a-z_]*_bucket\b", expr))
    if quantiles != with_buckets:
        found.append("histogram_quantile needs sum by (le, ...) of the rate of buckets")
    return found
