"""The life of one request: admission, features, graph, reply."""
