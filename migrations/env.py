"""Run migrations on the connection that `gramfuse_server.schema` passes, or on the one that the settings name."""

from alembic import context
from sqlalchemy import Connection

from gramfuse_server.database import open_database
from gramfuse_server.settings import Settings
from gramfuse_server.tables import Row, UtcDateTime

TABLES = frozenset(Row.metadata.tables)


def include_name(name, type_, parent_names):
    """DBOS keeps its tables in the same database: only ours are compared."""
    return type_ != "table" or name in TABLES


def render_item(kind, item, autogen_context):
    """Migrations must not change when our column types do: write what the database sees."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UtcDateTime) else False


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Row.metadata,
        include_name=include_name,
        render_item=render_item,
        render_as_batch=connection.dialect.name == "sqlite",
        compare_type=True,
        transactional_ddl=True,  # SQLite too: the engine begins its transactions itself
    )
    with context.begin_transaction():
        context.run_migrations()


passed = context.config.attributes.get("connection")
if passed is not None:
    run(passed)
else:
    with open_database(Settings().database_url).write.begin() as opened:
        run(opened)
