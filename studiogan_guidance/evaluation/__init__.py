"""Features, statistics, metrics, and the run that joins them."""
