"""`make_secrets.py`: the secrets of one composed installation, made where they are missing. Standard library only.

Each part gets a folder (a volume) of its own with files that only its user may read; nobody else mounts it. What is
there is left alone, so this may run at every start; a lost volume of secrets means losing what they open, too.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from base64 import urlsafe_b64encode
from pathlib import Path

ANEMONE, POSTGRES, REDIS, GRAFANA, STORE = 10001, 999, 999, 472, 0
"""User ids in the images of docker-compose.yaml."""


class Folder:
    """A part's secrets: written once, readable by one user."""

    def __init__(self, root: Path, name: str, user: int) -> None:
        self._path = root / name
        self._user = user

    def once(self, name: str, text: str) -> str:
        """Write `text` to a file that does not exist yet; return what the file holds."""
        path = self._path / name
        if not path.is_file():
            draft = path.with_name(f".{name}.draft")
            draft.unlink(missing_ok=True)
            draft.touch(mode=0o600)
            draft.write_text(text)
            os.chown(draft, self._user, self._user)
            draft.replace(path)
        os.chown(self._path, self._user, self._user)
        self._path.chmod(0o700)
        return path.read_text()


def make(root: Path) -> None:
    """Fill the folders below `root`, which exist."""
    postgres, redis = Folder(root, "postgres", POSTGRES), Folder(root, "redis", REDIS)
    airflow, serving = Folder(root, "airflow", ANEMONE), Folder(root, "serving", ANEMONE)
    keys, store = Folder(root, "keys", ANEMONE), Folder(root, "store", STORE)

    database = postgres.once("password", _word())
    airflow.once("database", f"postgresql+psycopg2://airflow:{database}@postgres/airflow")
    airflow.once("results", f"db+postgresql://airflow:{database}@postgres/airflow")

    broker = redis.once("password", _word())
    redis.once("redis.conf", f"requirepass {broker}\n")
    airflow.once("broker", f"redis://:{broker}@redis:6379/0")

    airflow.once("fernet", urlsafe_b64encode(secrets.token_bytes(32)).decode())
    airflow.once("api", _word())
    airflow.once("jwt", _word())
    airflow.once("passwords.json", json.dumps({"admin": secrets.token_urlsafe(12)}) + "\n")

    access, secret = json.loads(keys.once("pair.json", json.dumps([secrets.token_hex(10), _word()])))
    keys.once("credentials", f"[default]\naws_access_key_id = {access}\naws_secret_access_key = {secret}\n")
    identity = {
        "name": "anemone",
        "credentials": [{"accessKey": access, "secretKey": secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    store.once("s3.json", json.dumps({"identities": [identity]}))

    serving.once("token", _word())
    Folder(root, "grafana", GRAFANA).once("password", secrets.token_urlsafe(12))


def _word() -> str:
    """256 bits, without a character that a URL or a shell would take for something else."""
    return secrets.token_hex(32)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
