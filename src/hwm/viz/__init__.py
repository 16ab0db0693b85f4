"""Pictures for people: gaze over frames, captions."""
