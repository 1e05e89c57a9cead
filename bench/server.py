"""nginx dressed as a read-only S3 on loopback: GET, HEAD and Range by path, one canned listing."""

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

_CONFIG = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{}}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{
    listen 127.0.0.1:{port};
    root {root};
    location = /bucket {{ default_type application/xml; try_files /listing.xml =404; }}
    location = /bucket/ {{ default_type application/xml; try_files /listing.xml =404; }}
    location / {{ default_type application/octet-stream; }}
  }}
}}
"""


@contextlib.contextmanager
def serve(root: Path, folder: Path) -> Iterator[str]:
    """Serve `root`/bucket/...; gives the endpoint's address."""
    keys = [path for path in sorted((root / "bucket").rglob("*")) if path.is_file()]
    items = "".join(
        f"<Contents><Key>{path.relative_to(root / 'bucket')}</Key>"
        f"<Size>{path.stat().st_size}</Size></Contents>"
        for path in keys
    )
    (root / "listing.xml").write_text(
        f"<ListBucketResult><Name>bucket</Name><IsTruncated>false</IsTruncated>{items}"
        "</ListBucketResult>"
    )
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config = folder / "nginx.conf"
    config.write_text(_CONFIG.format(folder=folder, port=port, root=root))
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    process = subprocess.Popen([nginx, "-c", str(config)])
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
