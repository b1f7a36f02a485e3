"""`python -m trogdor_bus` is the command line."""

import sys

from trogdor_bus.cli import main

sys.exit(main())
