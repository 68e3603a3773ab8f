"""Planning: what a run needs of a machine and how fast it can be there, before the machine is rented."""
