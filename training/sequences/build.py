"""Build a net, its loss and its data from a config: where sequence configs meet modules."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from training.models.syncrec_net import SasrecNet, SequenceNet, SyncrecNet
from training.sequences.config import (
    EncoderConfig,
    EventsConfig,
    SasrecEncoderConfig,
    SequenceConfig,
    SyncrecEncoderConfig,
)
from training.sequences.errors import SequenceError
from training.sequences.log import EventColumns, EventLog, read_log
from training.sequences.losses import PairLoss, TransferWeights
from training.sequences.objective import Objective, PlainObjective, SyncrecObjective

_NOT_THE_NETS = {
    "type",
    "single_view",
    "eta",
    "agreement",
    "delta",
    "floor",
    "decay",
    "switch_deviations",
}


def open_log(config: EventsConfig, data: Path) -> EventLog:
    """Read the event log of a data folder.

    Raises:
        SequenceError: A file or column is missing or cannot be used.
    """
    return read_log(
        data / config.file,
        EventColumns(
            config.user, config.item, config.domain, config.order, config.time, as_lists=config.as_lists
        ),
        num_valid=config.num_valid,
        num_test=config.num_test,
        domain_names=_names(config, data),
    )


def _names(config: EventsConfig, data: Path) -> dict[str, str] | None:
    names = config.domain_names
    if names is None:
        return None
    path = data / names.file
    try:
        table = pl.read_csv(path)
        columns = table.select(pl.col(names.key, names.name).cast(pl.String))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise SequenceError(f"{path}: cannot read the names of domains: {error}") from error
    return dict(columns.iter_rows())


def build_net(config: EncoderConfig, *, num_rows: int, num_domains: int) -> SequenceNet:
    """A freshly initialised net."""
    sizes = config.model_dump(exclude=_NOT_THE_NETS)
    if isinstance(config, SasrecEncoderConfig):
        return SasrecNet(num_rows=num_rows, num_domains=num_domains, **sizes)
    return SyncrecNet(num_rows=num_rows, num_domains=num_domains, **sizes)


def build_objective(config: SequenceConfig, *, num_domains: int) -> Objective:
    """The loss that goes with the net."""
    loss: PairLoss = config.training.loss
    model = config.model
    if not isinstance(model, SyncrecEncoderConfig):
        return PlainObjective(loss=loss, num_domains=num_domains)
    transfer = TransferWeights(
        num_domains=num_domains, decay=model.decay, delta=model.delta, floor=model.floor
    )
    return SyncrecObjective(transfer, loss=loss, eta=model.eta, agreement=model.agreement)
