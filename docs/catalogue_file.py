"""Writes the file from which `onceclip methods` answers: `python docs/catalogue_file.py`, as `make docs` does."""

from onceclip.pipeline.api.catalogue import FILE, catalogue_text

if __name__ == "__main__":
    FILE.write_text(catalogue_text(), encoding="utf-8")
