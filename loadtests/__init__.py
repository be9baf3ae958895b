"""Load, cost and example clients. They speak HTTP to a running service, or drive the app in-process."""
