"""layers of jobs.

Revision: 0003, after 0002
"""

import sqlalchemy as sa
from alembic import op


revision = '0003'
down_revision = '0002'
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table('jobs') as jobs:
        jobs.add_column(sa.Column('solved_layers', sa.BigInteger(), nullable=True))
        jobs.add_column(sa.Column('averaged_layers', sa.BigInteger(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table('jobs') as jobs:
        jobs.drop_column('averaged_layers')
        jobs.drop_column('solved_layers')
