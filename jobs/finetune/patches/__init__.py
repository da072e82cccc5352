"""Changes to AutoModel 0.7.0, applied in the process of each rank."""
