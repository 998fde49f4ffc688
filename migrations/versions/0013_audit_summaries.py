"""contributions: the summary of each one's audit, where its policy shares it.

Revision: 0013, after 0012
"""

import sqlalchemy as sa
from alembic import op


revision = '0013'
down_revision = '0012'
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table('contributions') as contributions:
        contributions.add_column(sa.Column('audit', sa.Text(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table('contributions') as contributions:
        contributions.drop_column('audit')
