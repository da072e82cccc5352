"""Connections of this process, on real sockets."""

from __future__ import annotations

import socket

from jobs.finetune.network import limit_silence


def test_only_connections_to_the_port_get_the_limit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        port = one.getsockname()[1]
        with (
            socket.create_connection(one.getsockname()) as to_one,
            socket.create_connection(other.getsockname()) as to_other,
        ):
            limit_silence(port, 20)
            limits = [
                connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) for connection in (to_one, to_other)
            ]
            assert limits == [20_000, 0]
            assert to_one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert to_one.fileno() != -1
