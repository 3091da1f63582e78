"""The server, which tears all its connections to other processes at once when it is told to: for chaos.py.

python benchmarks/torn_server.py OPTIONS        (options of chainserve-server; kill -USR1 tears)
"""

import os
import signal
import socket
import sys
from contextlib import suppress

from chainserve_server.cli import main


def tear(*_: object) -> None:
    """Shut every connected TCP socket of this process down, as if its cable had been pulled for a moment."""
    for name in os.listdir("/proc/self/fd"):
        # An OSError: no socket, not connected, or gone by now.
        with suppress(OSError), socket.socket(fileno=os.dup(int(name))) as connection:
            if connection.type == socket.SOCK_STREAM and connection.family in (socket.AF_INET, socket.AF_INET6):
                connection.getpeername()
                connection.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, tear)
    sys.exit(main())
