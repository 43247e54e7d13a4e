"""``python -m alexnet_lib``: the command line."""

from alexnet_lib.cli import main

if __name__ == "__main__":
    main()
