"""Config files: turns YAML and command-line overrides into frozen dataclasses and back, and locates every mistake."""
