"""Several engines behind one address, run by Ray Serve."""

import os

# Ray reads these when it is imported: nothing is told to its makers, its ports ask for a token, and a replica that is
# slow to say how busy it is, as on a crowded machine, is waited for. Workers of a Ray started here, which would be nice
# (15), have the priority of any server.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_worker_niceness": "0",
    "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "1",
}
for name, value in SETTINGS.items():
    os.environ.setdefault(name, value)
