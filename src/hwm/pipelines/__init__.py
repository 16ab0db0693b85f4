"""One file a verb; each `run(config)` goes from a validated config to a result and a run folder."""
