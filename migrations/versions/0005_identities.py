"""identity keys of participants, and signatures of acceptances; everybody joins again.

Revision: 0005, after 0004
"""

import sqlalchemy as sa
from alembic import op


revision = '0005'
down_revision = '0004'
branch_labels = None
depends_on = None

KEY = ['project', 'version', 'organization']


def upgrade() -> None:
    with op.batch_alter_table('participants') as participants:
        participants.add_column(sa.Column('identity', sa.String(), nullable=True))
        participants.create_unique_constraint(op.f('uq_participants_project_identity'), ['project', 'identity'])
    op.execute('UPDATE participants SET accepted_version = NULL')  # what was accepted was not signed
    with op.batch_alter_table('acceptances') as acceptances:
        acceptances.add_column(sa.Column('identity', sa.String(), nullable=False, server_default=''))
        acceptances.add_column(sa.Column('signature', sa.String(), nullable=True))
    _identify_acceptances([*KEY, 'identity'])
    with op.batch_alter_table('acceptances') as acceptances:
        acceptances.alter_column('identity', server_default=None)


def downgrade() -> None:
    op.execute(
        'DELETE FROM acceptances WHERE EXISTS (SELECT 1 FROM acceptances other WHERE other.project = acceptances.project'
        ' AND other.version = acceptances.version AND other.organization = acceptances.organization'
        ' AND other.identity < acceptances.identity)'
    )
    _identify_acceptances(KEY)
    with op.batch_alter_table('acceptances') as acceptances:
        acceptances.drop_column('signature')
        acceptances.drop_column('identity')
    with op.batch_alter_table('participants') as participants:
        participants.drop_constraint(op.f('uq_participants_project_identity'), type_='unique')
        participants.drop_column('identity')


def _identify_acceptances(columns: list[str]) -> None:
    with op.batch_alter_table('acceptances') as acceptances:
        acceptances.drop_constraint(op.f('pk_acceptances'), type_='primary')
        acceptances.create_primary_key(op.f('pk_acceptances'), columns)
