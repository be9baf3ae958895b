"""Reading A/B tests: planning, sample-ratio check, lift, sequential results, calibration per arm."""
