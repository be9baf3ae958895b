"""Online click-through scoring: opens bundles, joins features, serves calibrated probabilities. Never imports torch."""
