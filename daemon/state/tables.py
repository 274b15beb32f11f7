"""The tables of `state.db`, and how an older file gets them."""

from sqlite_utils import Database, Migrations

# a migration is never edited once it has shipped: a change is a new one at the end, with the next number
MIGRATIONS = Migrations("state")
VERSION = 10

_FIRST = (
    "CREATE TABLE IF NOT EXISTS principals (name TEXT PRIMARY KEY, role TEXT NOT NULL, created REAL NOT NULL) STRICT",
    """CREATE TABLE IF NOT EXISTS certificates (
        serial TEXT PRIMARY KEY, principal TEXT NOT NULL REFERENCES principals (name),
        not_before REAL NOT NULL, not_after REAL NOT NULL, revoked_at REAL, issued REAL NOT NULL) STRICT""",
    "CREATE INDEX IF NOT EXISTS certificates_principal ON certificates (principal)",
    """CREATE TABLE IF NOT EXISTS models (
        name TEXT PRIMARY KEY, digest TEXT NOT NULL, size INTEGER NOT NULL, source TEXT NOT NULL,
        imported REAL NOT NULL, info TEXT NOT NULL) STRICT""",
    """CREATE TABLE IF NOT EXISTS deployments (
        model TEXT PRIMARY KEY REFERENCES models (name) ON UPDATE CASCADE,
        ctx INTEGER, slots INTEGER, created REAL NOT NULL) STRICT""",
)


@MIGRATIONS()
def tables(db: Database) -> None:
    """Files that were made before migrations had names have these tables already."""
    for statement in _FIRST:
        db.execute(statement)
    db.execute("PRAGMA user_version = 1")


@MIGRATIONS()
def placements(db: Database) -> None:
    if "placement" not in db.table("deployments").columns_dict:
        db.execute("ALTER TABLE deployments ADD COLUMN placement TEXT NOT NULL DEFAULT '{}'")
    db.execute("PRAGMA user_version = 2")


@MIGRATIONS()
def replicas(db: Database) -> None:
    if "replicas" not in db.table("deployments").columns_dict:
        db.execute("ALTER TABLE deployments ADD COLUMN replicas INTEGER NOT NULL DEFAULT 1")
    db.execute("PRAGMA user_version = 3")


@MIGRATIONS()
def calibration(db: Database) -> None:
    db.execute(
        """CREATE TABLE IF NOT EXISTS calibration (
            conditions TEXT PRIMARY KEY, build TEXT NOT NULL, measured REAL NOT NULL, overhead TEXT NOT NULL) STRICT"""
    )
    db.execute("PRAGMA user_version = 4")


@MIGRATIONS()
def evictions(db: Database) -> None:
    if "evicted" not in db.table("deployments").columns_dict:
        db.execute("ALTER TABLE deployments ADD COLUMN evicted TEXT NOT NULL DEFAULT '{}'")
    db.execute("PRAGMA user_version = 5")


@MIGRATIONS()
def forms(db: Database) -> None:
    """A model imported before has one form: its file."""
    db.execute(
        """CREATE TABLE IF NOT EXISTS forms (
            model TEXT NOT NULL REFERENCES models (name) ON UPDATE CASCADE ON DELETE CASCADE, type TEXT NOT NULL,
            digest TEXT NOT NULL, size INTEGER NOT NULL, info TEXT NOT NULL, PRIMARY KEY (model, type)) STRICT"""
    )
    db.execute(
        """INSERT OR IGNORE INTO forms (model, type, digest, size, info)
            SELECT name, COALESCE(json_extract(info, '$.file_type'), 'GGUF'), digest, size, info FROM models"""
    )
    db.execute("PRAGMA user_version = 6")


@MIGRATIONS()
def jobs(db: Database) -> None:
    db.execute(
        """CREATE TABLE IF NOT EXISTS jobs (
            id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, model TEXT NOT NULL, asked TEXT NOT NULL,
            actor TEXT NOT NULL, created REAL NOT NULL, state TEXT NOT NULL, started REAL, ended REAL,
            error TEXT NOT NULL DEFAULT '', result TEXT NOT NULL DEFAULT '{}', log TEXT NOT NULL DEFAULT '') STRICT"""
    )
    db.execute("PRAGMA user_version = 7")


@MIGRATIONS()
def ignored_gpus(db: Database) -> None:
    db.execute("CREATE TABLE IF NOT EXISTS ignored_gpus (uuid TEXT PRIMARY KEY, since REAL NOT NULL) STRICT")
    db.execute("PRAGMA user_version = 8")


@MIGRATIONS()
def policies(db: Database) -> None:
    """Each one that held; the last one holds."""
    db.execute(
        """CREATE TABLE IF NOT EXISTS policies (
            version INTEGER PRIMARY KEY, created REAL NOT NULL, actor TEXT NOT NULL, text TEXT NOT NULL) STRICT"""
    )
    db.execute("PRAGMA user_version = 9")


@MIGRATIONS()
def usage(db: Database) -> None:
    db.execute(
        """CREATE TABLE IF NOT EXISTS usage (
            day TEXT NOT NULL, client TEXT NOT NULL, groups TEXT NOT NULL, model TEXT NOT NULL,
            requests INTEGER NOT NULL, prompt INTEGER NOT NULL, cached INTEGER NOT NULL, output INTEGER NOT NULL,
            seconds REAL NOT NULL, joules REAL NOT NULL, PRIMARY KEY (day, client, groups, model)) STRICT"""
    )
    db.execute("PRAGMA user_version = 10")
