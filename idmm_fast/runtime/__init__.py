"""Device, precision and processes: what a computation runs on."""
