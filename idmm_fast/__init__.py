"""Pretraining vision transformers on small image datasets: instance discrimination with multi-crop and CutMix."""
