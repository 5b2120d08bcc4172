"""Several engines behind one address, run by Ray Serve."""

import os

# Ray reads these when it is imported: nothing is told to its makers, and its ports ask for a token.
for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_SERVE_LOG_TO_STDERR": "0"}.items():
    os.environ.setdefault(name, value)
