"""`python -m histocodec` is the command line."""

from histocodec.cli.main import main

if __name__ == "__main__":
    main()
