"""Videos, clips, annotations and gaze tracks: what is on disk, read strictly and with every exclusion counted."""
