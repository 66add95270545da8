"""python -m reprogpt COMMAND."""

from reprogpt.cli.main import main

if __name__ == "__main__":
    main()
