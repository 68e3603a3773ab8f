"""What a run needs of a machine, and how fast it can be there, before it is rented."""
