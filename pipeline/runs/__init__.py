"""Stage 2: fit, sweep, replay and their result rows."""
