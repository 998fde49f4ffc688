"""attempts: how often the step that they are at was begun.

Revision: 0012, after 0011
"""

import sqlalchemy as sa
from alembic import op


revision = '0012'
down_revision = '0011'
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table('attempts') as attempts:
        attempts.add_column(sa.Column('executions', sa.BigInteger(), server_default='0', nullable=False))


def downgrade() -> None:
    with op.batch_alter_table('attempts') as attempts:
        attempts.drop_column('executions')
