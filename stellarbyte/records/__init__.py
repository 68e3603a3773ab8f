"""Records: the files of a source, and what is in them, whatever their format and compression."""
