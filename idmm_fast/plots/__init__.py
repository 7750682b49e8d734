"""Pictures, each written to a file."""
