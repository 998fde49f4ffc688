"""projects: a quota of its own, where it has one.

Revision: 0010, after 0009
"""

import sqlalchemy as sa
from alembic import op


revision = '0010'
down_revision = '0009'
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table('projects') as projects:
        projects.add_column(sa.Column('quota_bytes', sa.BigInteger(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table('projects') as projects:
        projects.drop_column('quota_bytes')
