"""Our way beside the ways that users work today and beside what the machine allows: `python -m bench`."""
