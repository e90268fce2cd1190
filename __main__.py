"""`python -m onceclip` is the `onceclip` command."""

from onceclip.cli import main

if __name__ == "__main__":
    main()
