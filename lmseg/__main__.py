"""The command `lmseg`, also as `python -m lmseg`."""

import sys

from lmseg.origin import PACKAGES, check_origin, leave_current_folder


def main() -> None:
    """Run the command line; exit 2 with one line where other packages of the same names are in the way."""
    try:
        for package in PACKAGES:
            check_origin(package)
    except ImportError as error:
        print(f"lmseg: {error}", file=sys.stderr)
        sys.exit(2)
    from flows.cli import main as run

    run()


if __name__ == "__main__":
    leave_current_folder()
    main()
