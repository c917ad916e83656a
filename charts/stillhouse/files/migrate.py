"""Bring MLflow's tables up to date, or make them: `python migrate.py URI`.

Pods that start at once take turns: MLflow's own lock is a file, and each pod has its own.
"""

import subprocess
import sys

import sqlalchemy

LOCK = 5150_2031
"""Of PostgreSQL's advisory locks, the one for this."""


def main() -> int:
    """Wait for the lock, migrate, and let the lock go; the exit code is that of `mlflow db upgrade`."""
    uri = sys.argv[1]
    # No transaction stays open meanwhile: servers end those that idle.
    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"SELECT pg_advisory_lock({LOCK})")
        # The lock ends with the connection, whatever becomes of this.
        return subprocess.run([sys.executable, "-m", "mlflow", "db", "upgrade", uri]).returncode


if __name__ == "__main__":
    sys.exit(main())
