"""`stellarbyte quantize`: from a model's folder or a run to a quantised folder that has passed its gate."""
