"""The cluster's DNS: answers for headless Services from EndpointSlices, and for nothing else."""

import ctypes
import ipaddress
import selectors
import socket
import struct
import threading
import time

FABRIC = "kube-fabric"
ADDRESSES = {4: "198.18.0.2", 6: "fd00:18::2"}  # by IP version
KINDS = {1: 4, 28: 6}  # A and AAAA records, and the IP version of each


def enter(namespace: str) -> None:
    """Move this thread into a network namespace."""
    with open(f"/run/netns/{namespace}") as file:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(file.fileno(), 0x40000000):
            raise OSError(ctypes.get_errno(), "setns")


class Dns(threading.Thread):
    """Follows EndpointSlices in one thread and answers in another."""

    def __init__(self, watch) -> None:
        super().__init__(daemon=True)
        self.watch, self.names = watch, {}

    def follow(self) -> None:
        slices: dict[str, dict] = {}

        def heard(kind: str, found: dict) -> None:
            if kind == "LIST":
                slices.clear()
                slices.update(found)
            elif kind == "DELETED":
                slices.pop(found["metadata"]["uid"], None)
            elif kind in ("ADDED", "MODIFIED"):
                slices[found["metadata"]["uid"]] = found
            names: dict[str, list[str]] = {}
            for part in slices.values():
                meta = part["metadata"]
                service = f"{meta.get('labels', {}).get('kubernetes.io/service-name')}.{meta['namespace']}.svc.cluster.local"
                for end in part.get("endpoints") or []:
                    if end.get("conditions", {}).get("ready") is False:
                        continue
                    names.setdefault(service, []).extend(end["addresses"])
                    if end.get("hostname"):
                        names.setdefault(f"{end['hostname']}.{service}", []).extend(end["addresses"])
            self.names = names

        self.watch("/apis/discovery.k8s.io/v1/endpointslices", heard)

    def run(self) -> None:
        threading.Thread(target=self.follow, daemon=True).start()
        enter(FABRIC)
        waiting = selectors.DefaultSelector()
        for version, address in ADDRESSES.items():
            sock = socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind((address, 53))
            waiting.register(sock, selectors.EVENT_READ)
        while True:
            for key, _ in waiting.select():
                try:
                    data, peer = key.fileobj.recvfrom(1500)
                    key.fileobj.sendto(self.answer(data), peer)
                except Exception as error:
                    print(time.strftime("%H:%M:%S"), "dns", repr(error), flush=True)

    def answer(self, data: bytes) -> bytes:
        at, parts = 12, []
        while data[at]:
            parts.append(data[at + 1 : at + 1 + data[at]].decode().lower())
            at += 1 + data[at]
        kind = struct.unpack(">H", data[at + 1 : at + 3])[0]
        question = data[12 : at + 5]
        known = list(map(ipaddress.ip_address, self.names.get(".".join(parts), [])))
        found = [address.packed for address in known if address.version == KINDS.get(kind)]
        head = data[:2] + struct.pack(">HHHHH", 0x8580 | (0 if known else 3), 1, len(found), 0, 0)
        records = (struct.pack(">HHHIH", 0xC00C, kind, 1, 5, len(packed)) + packed for packed in found)
        return head + question + b"".join(records)
