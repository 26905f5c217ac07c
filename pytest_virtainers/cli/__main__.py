"""`python -m pytest_virtainers.cli` is `virtainers`."""

import sys

from pytest_virtainers.cli import main

sys.exit(main())
