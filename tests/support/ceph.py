"""Ceph's S3 server for the tests; `.ci/servers` puts it on the machine."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bench.servers import START_SECONDS, Server, binary, free_port, note_real, server_at, wait_for


@contextlib.contextmanager
def start_rgw(folder: Path) -> Iterator[Server]:
    """Ceph's RGW over https with a certificate of its own: a monitor, a store in memory, RGW."""
    note_real("radosgw", "--version")
    monitor, port = free_port(), free_port()
    certificate, key = folder / "cert.pem", folder / "both.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", folder / "key.pem", "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    key.write_bytes((folder / "key.pem").read_bytes() + certificate.read_bytes())
    cluster = _Ceph(folder, monitor, f"ssl_endpoint=127.0.0.1:{port} ssl_certificate={key}")
    try:
        cluster.start()
        wait_for(f"https://127.0.0.1:{port}/", folder / "log/client.rgw.log", certificate)
        server = server_at(f"https://127.0.0.1:{port}", "rgw-key", "rgw-secret")
        yield Server(server.endpoint, {**server.environment, "AWS_CA_BUNDLE": str(certificate)})
    finally:
        cluster.stop()


class _Ceph:
    """The smallest cluster that serves S3."""

    def __init__(self, folder: Path, monitor: int, frontend: str) -> None:
        self._folder = folder
        self._monitor = f"[v1:127.0.0.1:{monitor}]"
        for name in ("mon", "osd", "rgw", "log", "run"):
            (folder / name).mkdir()
        self._conf = folder / "ceph.conf"
        self._fsid = Path("/proc/sys/kernel/random/uuid").read_text().strip()
        self._conf.write_text(
            f"""[global]
            fsid = {self._fsid}
            mon_host = {self._monitor}
            ms_bind_msgr2 = false
            auth_cluster_required = none
            auth_service_required = none
            auth_client_required = none
            public_addr = 127.0.0.1
            cluster_addr = 127.0.0.1
            osd_pool_default_size = 1
            osd_pool_default_min_size = 1
            mon_allow_pool_size_one = true
            osd_pool_default_pg_num = 4
            osd_crush_chooseleaf_type = 0
            mon_warn_on_pool_no_redundancy = false
            run_dir = {folder}/run
            admin_socket = {folder}/run/$cluster-$name.asok
            pid_file = {folder}/run/$name.pid
            log_file = {folder}/log/$name.log
            [mon]
            mon_data = {folder}/mon
            mon_data_avail_warn = 1
            # Even at 0, a monitor refuses a disk with less than 1 % left.
            mon_data_avail_crit = -1
            mon_osd_min_down_reporters = 1
            [osd]
            osd_data = {folder}/osd
            osd_objectstore = memstore
            memstore_device_bytes = 2147483648
            osd_class_load_list = *
            [client.rgw]
            rgw_frontends = beast {frontend}
            rgw_data = {folder}/rgw
            rgw_enable_usage_log = false
            rgw_run_sync_thread = false
            """.replace("\n            ", "\n")
        )

    def start(self) -> None:
        """Bring all of it up and make a user."""
        folder = self._folder
        self._run("monmaptool", "--create", "--fsid", self._fsid, "--addv", "a",
                  self._monitor, f"{folder}/monmap")  # fmt: skip
        self._run("ceph-mon", "-i", "a", "--mkfs", "--monmap", f"{folder}/monmap")
        self._run("ceph-mon", "-i", "a")
        disk = Path("/proc/sys/kernel/random/uuid").read_text().strip()
        self._run("ceph", "osd", "new", disk)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
        self._run("ceph", "osd", "crush", "add", "osd.0", "1.0", "root=default", "host=h0")
        self._start_osd()
        self._run("radosgw", "-n", "client.rgw")
        self._run(
            *("radosgw-admin", "-n", "client.rgw", "--admin-socket=", "user", "create"),
            *("--uid=test", "--display-name=test"),
            *("--access-key=rgw-key", "--secret-key=rgw-secret"),
        )

    def _start_osd(self) -> None:
        """At times it asks the monitor before it knows of which cluster, and gives up."""
        for _ in range(9):
            with contextlib.suppress(AssertionError):
                self._run("ceph-osd", "-i", "0")
                return
            time.sleep(0.5)
        self._run("ceph-osd", "-i", "0")

    def stop(self) -> None:
        """Take it down, the last one first."""
        for name in ("client.rgw", "osd.0", "mon.a"):
            pid_file = self._folder / "run" / f"{name}.pid"
            with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
                os.kill(int(pid_file.read_text()), signal.SIGTERM)

    def _run(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            [binary(name), "-c", str(self._conf), *arguments]
            if name != "monmaptool"
            else [binary(name), *arguments],
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
        )
        assert done.returncode == 0, f"{name}: {done.stderr[-2000:]}"
