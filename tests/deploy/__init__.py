"""The project on a real Docker engine and a real Kubernetes; run by `make test-deploy` only."""
