"""Feature sources: where encoded user and item rows come from."""
