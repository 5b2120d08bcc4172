"""Networks: the one backbone and what can be built around it."""
