"""``python -m jaxpool`` is the command ``jaxpool``."""

import sys

from jaxpool.commands.main import main

sys.exit(main())
