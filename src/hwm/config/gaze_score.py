"""Scoring Gazelle against an eye tracker; `hwm gaze-score CONFIG`."""

from pydantic import Field, model_validator

from hwm.config.base import GazeFilesConfig, GazelleConfig, PathText, RunConfig, refuse_unread


class GazeScoreConfig(RunConfig):
    """Score Gazelle's heat maps against measured gaze: `hwm gaze-score CONFIG`."""

    gazelle: GazelleConfig = GazelleConfig()
    videos: tuple[PathText, ...]
    """Ego videos to score on: files, folders, `.txt` lists, `.csv` lists (column `path`), in any mixture."""
    prior_videos: tuple[PathText, ...]
    """Other ego videos, whose measured gaze makes the centre prior (its mean map)."""
    glob: str = "**/*_214-1.mp4"
    """Pattern of the files taken from a folder."""
    gaze_files: GazeFilesConfig
    fps: float = Field(default=1.0, gt=0)
    """Frames scored a second."""
    sigma: float = Field(default=0.05, gt=0, le=1)
    """Deviation of the Gaussians of the prior and of the divergence, as a share of the picture's side."""

    @model_validator(mode="after")
    def _has_gaze(self) -> "GazeScoreConfig":
        refuse_unread(self, "precision", "num_workers", "recompute_activations", "compile")
        if self.gaze_files.folder is None:
            raise ValueError("gaze-score needs gaze_files.folder: where the eye tracker's files are")
        return self
