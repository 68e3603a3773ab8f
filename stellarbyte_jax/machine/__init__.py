"""The machine below a run: its chips, and what its compiler is told and keeps."""
