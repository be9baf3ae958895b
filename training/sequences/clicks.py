"""Click probabilities from a sequence model: a run folder that is exported and served like any other.

A sequence model's score orders what a user may take next; it is no probability of a click. This puts the
net behind the feature schema of logged impressions, fits a line per domain on their validation rows, and
judges it there and on test rows. Items of the schema get the net's vectors by name; a new one gets a vector
by its attributes (`content`), or none.

Invariants: no probability without impressions; the net was trained on no event after the train rows; the
histories are those of the data set, which precede its log.

Letters: D domains, I items of the schema, V of the net, r width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from service.contract.schema import FIRST_ID, FeatureSchema, VocabularyEncoder
from training.config import RunConfig
from training.data.prepared import PreparedDataset
from training.engine.artefacts import RunFolder, save_json
from training.engine.evaluate import Predictions
from training.engine.finish import EVALUATED_SPLITS, write_judged
from training.engine.run import RunResult, claim, headline
from training.engine.score import predict_split
from training.models.base import CtrModel
from training.models.build import build_model
from training.models.config import SyncrecConfig
from training.models.syncrec import SyncrecInputs, SyncrecRanker
from training.models.syncrec_net import SyncrecNet
from training.sequences.config import SyncrecEncoderConfig
from training.sequences.content import content_vectors
from training.sequences.errors import SequenceError
from training.sequences.run import SequenceModel
from training.track import Quiet, RunLog, Watcher


@dataclass(frozen=True)
class HistoryNames:
    """Which features of a schema the model reads.

    Attributes:
        history: The user's sequence.
        item_field, domain_field: Its fields.
        item: The item's id.
    """

    history: str = "history"
    item_field: str = "item"
    domain_field: str = "domain"
    item: str = "item_id"


def calibrate_clicks(
    model: SequenceModel,
    prepared: PreparedDataset,
    out: Path,
    *,
    name: str,
    names: HistoryNames,
    trained_until_ms: int | None,
    content: bool = True,
    watcher: Watcher | None = None,
) -> RunResult:
    """Fill a run folder with a model of click probabilities.

    Args:
        model: Trained on events before the impressions.
        prepared: Impressions, with users' histories.
        out: The run folder.
        name: Of the run.
        names: Features to read.
        trained_until_ms: Last event the net learned from, ms since 1970; None where events have no clock.
        content: Whether items without events get vectors by their attributes.
        watcher: Shows progress.

    Raises:
        SequenceError: Not a SyNCRec model, or one that learned from what came after the train rows.
        SchemaError: The schema lacks what the model reads.
        RunError: The folder is taken.
        CalibrationError: The impressions do not allow a calibration.
    """
    watcher = watcher or Quiet()
    if trained_until_ms is not None and trained_until_ms > prepared.feature_time_ms:
        raise SequenceError(
            f"the model learned from events until {trained_until_ms} ms, the impressions' train rows end at "
            f"{prepared.feature_time_ms} ms; fit it on earlier events"
        )
    config = RunConfig(name=name, model=serving_config(model, names, prepared.schema.domains))
    folder = RunFolder(out)
    claim(folder, config, prepared, resume=False)
    built = build_model(config.model, prepared.schema).eval()
    told = fill(built, model, prepared, content=content)
    device = torch.device("cpu")
    size = config.training.eval_batch_size

    def predicted(split: str) -> Predictions:
        return predict_split(built, prepared, split, batch_size=size, device=device, watcher=watcher)

    with RunLog(folder.log) as log:
        log.event("start", name=name, data=prepared.data_digest, schema=prepared.schema.digest)
        _set_missing(built, predicted("valid"))
        predictions = {split: predicted(split) for split in EVALUATED_SPLITS}
        metrics = write_judged(config, prepared, folder, model=built, predictions=predictions)
        metrics |= {"sequence": told, "seconds": 0.0, "train_s": 0.0, "rows_per_s": 0.0}
        metrics |= {"best_epoch": 0.0, "best_step": 0, "steps": 0}
        save_json(folder.metrics, metrics)
        log.event("metrics", **headline(metrics))
    return RunResult(folder, metrics)


def serving_config(model: SequenceModel, names: HistoryNames, domains: Sequence[str]) -> SyncrecConfig:
    """The model part of the config of a run over some domains.

    Raises:
        SequenceError: The model is of another method.
    """
    sizes = model.config
    if not isinstance(sizes, SyncrecEncoderConfig):
        raise SequenceError(f"a model of type syncrec can serve, not {getattr(sizes, 'type', 'this one')}")
    return SyncrecConfig(
        history=names.history,
        item_field=names.item_field,
        domain_field=names.domain_field,
        item=names.item,
        width=sizes.width,
        max_len=sizes.max_len,
        num_experts=sizes.num_experts,
        num_layers=sizes.num_layers,
        num_heads=sizes.num_heads,
        gate=sizes.gate,
        single_domains=tuple(
            name
            for name, single in zip(model.domains, model.use_single, strict=True)
            if single and name in domains
        ),
    )


def fill(
    built: CtrModel, model: SequenceModel, prepared: PreparedDataset, *, content: bool
) -> dict[str, int]:
    """Put a net's weights behind a schema; gives counts of items by where their vectors come from.

    Args:
        built: By the config that `serving_config` gives.
        model: What that config is of.
        prepared: With the schema.
        content: Whether items without events get vectors by their attributes.
    """
    inputs, net, schema = cast(SyncrecInputs, built.inputs), cast(SyncrecNet, model.net), prepared.schema
    rows = net_rows(model, schema, inputs.item_id.encoder)
    has_events = rows >= FIRST_ID
    vectors = net.items.weight.detach()[rows.clamp(min=0)]
    known = has_events.clone()
    if content:
        made, found = content_vectors(vectors, has_events, prepared, item=inputs.item_id.feature)
        vectors = torch.where((found & ~has_events).unsqueeze(1), made, vectors)
        known = has_events | found
    row_of_domain = {name: place for place, name in enumerate(model.domains)}
    singles = [
        name for name in schema.domains if int(inputs.get_buffer("task_of_domain")[schema.domain_index(name)])
    ]
    order = sorted(singles, key=lambda n: int(inputs.get_buffer("task_of_domain")[schema.domain_index(n)]))
    inputs.take_over(
        net,
        items=vectors,
        known=known.to(torch.float32),
        domains=[row_of_domain.get(name, len(model.domains)) for name in schema.domains],
        tasks=[0, *(1 + row_of_domain[name] for name in order)],
    )
    return {
        "items": len(rows) - FIRST_ID,
        "items_with_events": int(has_events.sum()),
        "items_by_content": int((known & ~has_events).sum()),
    }


def net_rows(model: SequenceModel, schema: FeatureSchema, encoder: str) -> Tensor:
    """(rows,) int64: the net's row of each row of the schema's items, -1 for those it does not know.

    Raises:
        SequenceError: The encoder does not keep names.
    """
    own = schema.encoder(encoder)
    if not isinstance(own, VocabularyEncoder):
        raise SequenceError(f"items have encoder '{encoder}', {own.type}; names are needed, so a vocabulary")
    row_of = {name: FIRST_ID + place for place, name in enumerate(model.items)}
    return torch.tensor([-1] * FIRST_ID + [row_of.get(name, -1) for name in own.values])


@torch.no_grad()
def _set_missing(built: CtrModel, rows: Predictions) -> None:
    """An item without a vector gets the mean logit of the domain's scored rows, of all for other domains."""
    ranker = cast(SyncrecRanker, built.ranker)
    scored = rows.logit != 0.0  # the constant before it is set
    overall = float(rows.logit[scored].mean()) if scored.any() else 0.0
    size = len(ranker.get_buffer("missing"))
    means = np.full(size, overall)
    for domain in range(size - 1):
        own = scored & (rows.domain == domain)
        if own.any():
            means[domain] = rows.logit[own].mean()
    ranker.set_missing(torch.from_numpy(means).to(torch.float32))
