"""`python -m glue_harness` is `glue-harness`."""

import sys

from glue_harness.cli import main

sys.exit(main())
