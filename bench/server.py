"""nginx dressed as S3 on loopback: one to read from, one that takes uploads and forgets them."""

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


_INITIATED = "InitiateMultipartUploadResult"
_SINK = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{}}
http {{
  access_log off; client_max_body_size 0; client_body_buffer_size 1m; keepalive_requests 1000000;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  map $request_method$is_args$args $answer {{
    default "";
    ~^POST\\?uploads "<{initiated}><UploadId>1</UploadId></{initiated}>";
    ~^POST "<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>";
    ~^GET "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";
  }}
  server {{
    listen 127.0.0.1:{port};
    lingering_timeout 60s; lingering_time 600s;
    location / {{
      default_type application/xml;
      if ($http_if_none_match) {{ return 201; }}  # for a 200, "*" would mean "not modified"
      add_header ETag '"x"';
      return 200 $answer;
    }}
  }}
}}
"""


@contextlib.contextmanager
def serve_sink(folder: Path) -> Iterator[str]:
    """Take any upload at next to no cost; gives the endpoint's address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config = folder / "nginx.conf"
    config.write_text(_SINK.format(folder=folder, port=port, initiated=_INITIATED))
    with _nginx(config, port):
        yield f"http://127.0.0.1:{port}"


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
    with _nginx(config, port):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def _nginx(config: Path, port: int) -> Iterator[None]:
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    process = subprocess.Popen([nginx, "-c", str(config)])
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()
