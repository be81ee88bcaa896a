"""What a machine needs before Beige can be built on it, and how each part is put there.

Used by `scripts/setup`, which makes what is missing, and `scripts/doctor`, which only looks.
Nothing here is needed to run a Beige that is already built. Standard library only: it runs on
the first Python a machine has.
"""

import sys

# Before any module is imported that an older Python cannot read.
if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(
        f"Python 3.11 or newer is needed, and {sys.executable} is older: put a newer python3 on PATH"
    )
