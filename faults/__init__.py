"""The fault lab: real servers and clients over real sockets, one cause after another, and a table of what was seen.

`python -m faults` runs it. The programs of the tests (`tests/serve`) are used as they are.
"""

import sys
from pathlib import Path

#: The checkout that this lab belongs to, and the programs of its tests.
ROOT = Path(__file__).resolve().parent.parent
SERVE = ROOT / "tests" / "serve"

sys.path += [str(folder) for folder in (SERVE, SERVE.parent) if str(folder) not in sys.path]
