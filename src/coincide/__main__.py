"""``python -m coincide`` is the command ``coincide``."""

import sys

from coincide.cli import main

sys.exit(main())
