"""The data plane around the compiled hot path: connections in and out, keys in memory, the catalogue of models."""
