"""The bench: experiments, their cells on disk, claims that are judged, and pictures."""
