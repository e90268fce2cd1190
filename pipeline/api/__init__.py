"""The functions behind the commands: they take paths or what has been opened, and are the names of `onceclip`."""
