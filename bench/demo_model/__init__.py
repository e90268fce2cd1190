"""What trained the small CLIP model that onceclip ships: rendered glyphs, their captions, and the training."""
