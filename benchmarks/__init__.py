"""Speed, memory and growth, measured against the peers a user would otherwise run: `python -m benchmarks --help`."""
