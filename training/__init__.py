"""Offline jobs: data, models, training, metrics and reports. Of the service only the contract is imported."""
