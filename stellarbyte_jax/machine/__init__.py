"""The machine that a run uses: its chips, its compiler's flags, and the cache of compiled programs."""
