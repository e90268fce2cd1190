"""Stage 1: from a source of images to a store."""
