"""Where a stage computes: in this process, or on a Ray cluster."""
