"""Search of the masks by which domains use an expert pyramid."""
