"""The tables of an audit database, and how an older file gets them."""

from sqlite_utils import Database, Migrations

from llmd.daemon.audit import starts

# a migration is never edited once it has shipped: a change is a new one at the end, with chain.SCHEMA_VERSION. It adds
# what may be left out, and nothing else: an older llmd goes on with the same file (nobody replaces an audit log)
MIGRATIONS = Migrations("audit")


@MIGRATIONS()
def log_table(db: Database) -> None:
    """Files that were made before migrations had names have this table already."""
    db.execute(
        "CREATE TABLE IF NOT EXISTS audit(seq INTEGER PRIMARY KEY, ts TEXT NOT NULL, kind TEXT NOT NULL, request TEXT,"
        " body TEXT NOT NULL, prev BLOB NOT NULL, hash BLOB NOT NULL) STRICT"
    )
    # A start looks for requests left open since the last start; this finds that row without a scan.
    db.execute("CREATE INDEX IF NOT EXISTS audit_start ON audit(seq) WHERE kind = 'start'")
    db.execute("PRAGMA user_version = 1")


# what says who may connect, so that a start finds it without a scan
OF_CLIENTS = "kind IN ('admin.client_issue', 'admin.client_revoke', 'admin.client_role')"


@MIGRATIONS()
def clients_index(db: Database) -> None:
    db.execute(f"CREATE INDEX IF NOT EXISTS audit_clients ON audit(seq) WHERE {OF_CLIENTS}")
    db.execute("PRAGMA user_version = 2")


@MIGRATIONS()
def failed_starts(db: Database) -> None:
    db.execute(starts.TABLE)
    db.execute("PRAGMA user_version = 3")


# what says who may use what
OF_POLICY = "kind = 'admin.policy'"


@MIGRATIONS()
def policy_index(db: Database) -> None:
    db.execute(f"CREATE INDEX IF NOT EXISTS audit_policy ON audit(seq) WHERE {OF_POLICY}")
    db.execute("PRAGMA user_version = 4")
