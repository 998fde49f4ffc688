"""jobs: the priority that an operator gives a job.

Revision: 0011, after 0010
"""

import sqlalchemy as sa
from alembic import op


revision = '0011'
down_revision = '0010'
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table('jobs') as jobs:
        jobs.add_column(sa.Column('priority', sa.String(), server_default='normal', nullable=False))
        jobs.create_check_constraint('priority', "priority IN ('high', 'normal', 'low')")


def downgrade() -> None:
    with op.batch_alter_table('jobs') as jobs:
        jobs.drop_constraint(op.f('ck_jobs_priority'), type_='check')
        jobs.drop_column('priority')
