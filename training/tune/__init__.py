"""Search of a config's values by validation: space, search, report."""
