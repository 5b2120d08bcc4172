"""A server for many users at once: an engine that batches continuously, and the HTTP interface and page in front."""
