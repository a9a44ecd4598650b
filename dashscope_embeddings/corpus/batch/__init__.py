"""A corpus at half the price: the service's Batch route, which answers within hours."""
