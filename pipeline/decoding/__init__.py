"""From a file's bytes to the pixels that an encoder takes."""
