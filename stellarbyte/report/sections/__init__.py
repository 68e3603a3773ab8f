"""The sections of a report's page: each function makes one, or None where nothing is known of its subject."""
