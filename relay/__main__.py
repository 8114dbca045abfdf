"""`python -m relay`: the same as the command `relay`."""

import sys

if __name__ == "__main__":
    try:
        from relay.cli import main
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(main())
