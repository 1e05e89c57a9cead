"""Draw the credentials of one MinIO, once, into a folder that the services share."""

import secrets
import sys
from pathlib import Path

folder = Path(sys.argv[1])
if not (folder / "aws").exists():
    user, password = "worker", secrets.token_urlsafe(24)
    (folder / "user").write_text(user)
    (folder / "password").write_text(password)
    (folder / "aws").write_text(
        f"[default]\naws_access_key_id = {user}\naws_secret_access_key = {password}\n"
    )
