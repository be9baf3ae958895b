"""The `dataset.yaml` of a synthetic data set: which columns are features, and which statistics to make."""

from __future__ import annotations

DATASET_YAML = """\
name: synthetic
interactions: interactions.parquet
users: {file: users.parquet, key: user_id}
items: {file: items.parquet, key: item_id}
columns: {user: user_id, item: item_id, domain: domain, label: label, time: {column: time_ms, unit: ms},
          split: split, true_probability: true_probability}
outcomes: [dwell_ms]
features:
  - {name: user_id, entity: user, kind: categorical, encoder: {type: vocabulary, min_count: 2}}
  - {name: age_band, entity: user, kind: categorical, encoder: {type: vocabulary}}
  - {name: country, entity: user, kind: categorical, encoder: {type: vocabulary}}
  - {name: activity, entity: user, kind: numeric, encoder: {type: standardise}}
  - {name: interests, entity: user, kind: multi, max_len: 5, weights: interest_weights,
     encoder: {type: vocabulary}}
  - {name: history, entity: user, kind: sequence, max_len: HISTORY_LENGTH, fields: [
     {name: item, column: history_items, encoder: item_id},
     {name: domain, column: history_domains, encoder: {type: vocabulary}}]}
  - {name: item_id, entity: item, kind: categorical, encoder: {type: vocabulary, min_count: 2}}
  - {name: brand, entity: item, kind: categorical, encoder: {type: vocabulary}}
  - {name: attributes, entity: item, kind: multi, max_len: 4, encoder: {type: vocabulary}}
  - {name: price, entity: item, kind: numeric, encoder: {type: standardise}}
  - {name: age_days, entity: item, kind: numeric, encoder: {type: bucketise}}
  - {name: hour, entity: context, kind: categorical, encoder: {type: vocabulary}}
  - {name: device, entity: context, kind: categorical, encoder: {type: vocabulary}}
statistics:
  snapshot: 1d
  keys:
    - {key: [user_id]}
    - {key: [item_id]}
    - {key: [brand]}
    - {key: [user_id, domain], parent: true}
    - {key: [item_id, domain], parent: true}
"""


def description_yaml(*, history_length: int) -> str:
    """Text of the file, for histories of at most `history_length` events."""
    return DATASET_YAML.replace("HISTORY_LENGTH", str(history_length))
