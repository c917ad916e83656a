"""A Service of the cluster, as kube-proxy makes it: a connection goes to one endpoint and stays there."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Sequence

from kubelet import Pod

__all__ = ["Service"]


class Service:
    """Forwards connections on loopback to pods that are ready.

    Args:
        pods: that its selector finds.
        port: of the pods.
        lag: seconds after a pod began to end in which nodes still send it new connections.
    """

    def __init__(self, pods: Sequence[Pod], port: int, *, lag: float = 1.0) -> None:
        self.pods, self._port, self._lag = pods, port, lag
        self.connections: list[str] = []
        """Name of the pod that each connection went to."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def endpoints(self) -> list[Pod]:
        """Pods that a new connection may go to."""
        now = time.monotonic()
        return [pod for pod in self.pods if (now < pod.terminated_at + self._lag if pod.terminating else pod.ready)]

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if not (endpoints := self.endpoints()):
                client.close()
                continue
            pod = random.choice(endpoints)
            self.connections.append(pod.name)
            try:
                server = socket.create_connection((pod.ip, self._port), timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=_pump, args=(source, target), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
