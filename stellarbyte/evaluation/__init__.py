"""Measuring a model, a run's or a folder's, on text and on tasks."""
