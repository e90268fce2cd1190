"""Stage 1, from images and prompts to a store; stage 2, from a store to fitted adapters and their results."""
