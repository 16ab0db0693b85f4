"""Pictures for people: gaze over frames, captions, latents as colours."""
