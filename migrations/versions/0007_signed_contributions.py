"""contributions: the signature of each one's statement, and by which identity key.

Revision: 0007, after 0006
"""

import sqlalchemy as sa
from alembic import op


revision = '0007'
down_revision = '0006'
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table('contributions') as contributions:
        contributions.add_column(sa.Column('identity', sa.String(), nullable=True))
        contributions.add_column(sa.Column('signature', sa.String(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table('contributions') as contributions:
        contributions.drop_column('signature')
        contributions.drop_column('identity')
