"""tasks of jobs and dashboard sessions.

Revision: 0002, after 0001
"""

import sqlalchemy as sa
from alembic import op


revision = '0002'
down_revision = '0001'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('dashboard_sessions',
    sa.Column('secret_sha256', sa.String(), nullable=False),
    sa.Column('token', sa.String(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('expires_at', sa.DateTime(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(['token'], ['tokens.id'], name=op.f('fk_dashboard_sessions_token')),
    sa.PrimaryKeyConstraint('secret_sha256', name=op.f('pk_dashboard_sessions'))
    )
    op.create_table('tasks',
    sa.Column('project', sa.String(), nullable=False),
    sa.Column('job', sa.String(), nullable=False),
    sa.Column('attempt', sa.BigInteger(), autoincrement=False, nullable=False),
    sa.Column('number', sa.BigInteger(), autoincrement=False, nullable=False),
    sa.Column('file', sa.String(), nullable=False),
    sa.Column('input_bytes', sa.BigInteger(), nullable=False),
    sa.Column('done_bytes', sa.BigInteger(), nullable=False),
    sa.Column('state', sa.String(), nullable=False),
    sa.Column('worker', sa.String(), nullable=True),
    sa.Column('executions', sa.BigInteger(), nullable=False),
    sa.Column('bytes', sa.BigInteger(), nullable=True),
    sa.Column('sha256', sa.String(), nullable=True),
    sa.Column('seconds', sa.Double(), nullable=True),
    sa.Column('diagnostics', sa.Text(), nullable=True),
    sa.CheckConstraint("state IN ('queued', 'running', 'succeeded')", name=op.f('ck_tasks_state')),
    sa.ForeignKeyConstraint(['project', 'job', 'attempt'], ['attempts.project', 'attempts.job', 'attempts.number'], name='fk_tasks_attempt'),
    sa.PrimaryKeyConstraint('project', 'job', 'attempt', 'number', name=op.f('pk_tasks'))
    )


def downgrade() -> None:
    op.drop_table('tasks')
    op.drop_table('dashboard_sessions')
