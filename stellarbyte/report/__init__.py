"""The report: what a model is made of and what it costs, counted, measured and drawn."""
