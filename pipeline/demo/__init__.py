"""The demonstration and the small CLIP model that it uses."""
