"""``python -m jaxpool`` is the command ``jaxpool``."""

import sys

from jaxpool.cli import main

sys.exit(main())
