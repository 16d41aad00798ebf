"""Servers on loopback that stream one clip, each in as much of its protocol as a player asks for."""

from __future__ import annotations

import functools
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av

PACKET = 1316  # bytes: seven packets of a transport stream


@contextmanager
def http(folder: Path, certificate: tuple[Path, Path] | None = None) -> Iterator[str]:
    """The files of `folder`; ``/to?PLACE`` leads elsewhere. With a certificate and its key, over TLS."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            if self.path.startswith("/to?"):
                self.send_response(302)
                self.send_header("Location", self.path.removeprefix("/to?"))
                self.end_headers()
                return
            super().do_GET()

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http{'s' * bool(certificate)}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def remuxed(path: Path, container: str) -> bytes:
    """The same packets in another container."""
    place = path.with_suffix(f".{container}")
    with av.open(str(path)) as source, av.open(str(place), "w", format=container) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return place.read_bytes()


@contextmanager
def _one_client(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """HOST:PORT, where the first who connects is served."""
    server = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        connection, _ = server.accept()
        with connection:
            serve(connection)

    threading.Thread(target=run, daemon=True).start()
    with server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def tcp(path: Path) -> Iterator[str]:
    """A transport stream, once."""
    data = remuxed(path, "mpegts")
    with _one_client(lambda connection: connection.sendall(data)) as place:
        yield f"tcp://{place}"


@contextmanager
def broken(path: Path, end: str) -> Iterator[str]:
    """The first half of a transport stream, and then nothing ("silent"), or the connection is cut ("reset")."""
    data = remuxed(path, "mpegts")
    stop = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.sendall(data[: len(data) // 2 // 188 * 188])
        stop.wait(0.5 if end == "reset" else 60)
        if end == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with _one_client(serve) as place:
        try:
            yield f"tcp://{place}"
        finally:
            stop.set()


@contextmanager
def udp(path: Path) -> Iterator[str]:
    """A transport stream, over and over, whether somebody listens or not."""
    data = remuxed(path, "mpegts")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    stop = threading.Event()

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            while not stop.is_set():
                for at in range(0, len(data), PACKET):
                    sender.sendto(data[at : at + PACKET], ("127.0.0.1", port))
                    if stop.wait(0.002):
                        return

    threading.Thread(target=send, daemon=True).start()
    try:
        yield f"udp://127.0.0.1:{port}"
    finally:
        stop.set()


@contextmanager
def rtsp(path: Path) -> Iterator[str]:
    """A transport stream in RTP packets, all inside the one connection (RFC 2326)."""
    data = remuxed(path, "mpegts")
    described = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=clip\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track\r\n"

    def serve(connection: socket.socket) -> None:
        with connection.makefile("rb") as lines:
            while request := lines.readline().decode().split():
                headers = {}
                while line := lines.readline().decode().strip():
                    name, _, value = line.partition(": ")
                    headers[name.lower()] = value
                extra, body = "", ""
                if request[0] == "DESCRIBE":
                    body = described
                    extra = f"Content-Type: application/sdp\r\nContent-Base: {request[1]}/\r\n"
                    extra += f"Content-Length: {len(body)}\r\n"
                elif request[0] == "SETUP":
                    extra = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
                head = f"RTSP/1.0 200 OK\r\nCSeq: {headers.get('cseq', '0')}\r\nSession: 1\r\n{extra}\r\n"
                connection.sendall(head.encode() + body.encode())
                if request[0] == "PLAY":
                    for number, at in enumerate(range(0, len(data), PACKET)):
                        rtp = struct.pack(">BBHI4s", 0x80, 33, number, number * 900, b"same") + data[at : at + PACKET]
                        connection.sendall(struct.pack(">cBH", b"$", 0, len(rtp)) + rtp)
                    return

    with _one_client(serve) as place:
        yield f"rtsp://{place}/clip"


@contextmanager
def rtmp(path: Path) -> Iterator[str]:
    """The tags of an FLV file as messages (Adobe's RTMP 1.0); each message is one chunk."""
    data = remuxed(path, "flv")

    def message(kind: int, body: bytes, time_ms: int = 0) -> bytes:
        head = b"\x04" + time_ms.to_bytes(3, "big") + len(body).to_bytes(3, "big") + bytes([kind])
        return head + struct.pack("<I", 1) + body

    def text(value: str) -> bytes:
        return b"\x02" + struct.pack(">H", len(value)) + value.encode()

    def command(name: str, *values: bytes) -> bytes:
        return message(20, text(name) + b"".join(values))

    def number(value: float) -> bytes:
        return b"\x00" + struct.pack(">d", value)

    def status(code: str) -> bytes:
        key = b"\x00\x04code" + text(code)
        return command(
            "onStatus", number(0), b"\x05", b"\x03" + b"\x00\x05level" + text("status") + key + b"\x00\x00\x09"
        )

    def asked(connection: socket.socket, name: str) -> bytes:
        """Waits for a command, gives the number that its answer must bear."""
        heard, sign = b"", text(name)
        while sign not in heard or len(heard) < heard.index(sign) + len(sign) + 9:
            heard += connection.recv(1 << 16)
        at = heard.index(sign) + len(sign)
        return heard[at : at + 9]

    def serve(connection: socket.socket) -> None:
        hello = connection.recv(1537, socket.MSG_WAITALL)
        connection.sendall(b"\x03" + bytes(1536) + hello[1:])
        connection.recv(1536, socket.MSG_WAITALL)
        connection.sendall(message(1, struct.pack(">I", 1 << 24)))  # the longest chunk
        connection.sendall(command("_result", asked(connection, "connect"), b"\x05", b"\x05"))
        connection.sendall(command("_result", asked(connection, "createStream"), b"\x05", number(1)))
        asked(connection, "play")
        connection.sendall(status("NetStream.Play.Start"))
        at = 9 + 4  # the header, the length of no tag
        while at < len(data):
            kind, size, time_ms = data[at], *(int.from_bytes(data[at + i : at + i + 3], "big") for i in (1, 4))
            connection.sendall(message(kind, data[at + 11 : at + 11 + size], time_ms))
            at += 11 + size + 4
        connection.sendall(status("NetStream.Play.Stop"))
        while connection.recv(1 << 16):  # until the player has left
            pass

    with _one_client(serve) as place:
        yield f"rtmp://{place}/live/clip"
