"""Offline jobs: data, models, the training loop, metrics and reports. Imports only the contract of the service."""
