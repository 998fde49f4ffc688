"""requests: the manifest of a secure sum with its first stage, and which first stage the others belong to.

Revision: 0006, after 0005
"""

import sqlalchemy as sa
from alembic import op


revision = '0006'
down_revision = '0005'
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table('requests') as requests:
        requests.add_column(sa.Column('session', sa.Text(), nullable=True))
        requests.add_column(sa.Column('opened_by', sa.String(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table('requests') as requests:
        requests.drop_column('opened_by')
        requests.drop_column('session')
