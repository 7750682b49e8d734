"""Training: pretraining without labels, fine-tuning with them."""
