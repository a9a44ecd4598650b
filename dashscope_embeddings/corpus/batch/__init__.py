"""A corpus through the service's Batch files: half the price, results within hours or days."""
