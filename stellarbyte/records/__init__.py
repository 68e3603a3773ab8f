"""Finds the files of a data source and reads their records, in any supported format and compression."""
