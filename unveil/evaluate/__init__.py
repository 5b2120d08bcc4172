"""Numbers about a model, each with what it is: exact, a bound, or neither."""
