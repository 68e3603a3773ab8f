"""Config files: YAML and command-line overrides to frozen dataclasses, and back; every mistake is located."""
