"""Retrieval: texts and the images or videos of a store rank each other, exactly and block by block."""
