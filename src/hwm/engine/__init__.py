"""What every run needs and no model knows: device and seeds, optimiser, checkpoints, the run's record, progress."""
