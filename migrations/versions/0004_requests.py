"""requests and their answers.

Revision: 0004, after 0003
"""

import sqlalchemy as sa
from alembic import op


revision = '0004'
down_revision = '0003'
branch_labels = None
depends_on = None

KINDS = "kind IN ('base', 'contribution')"
KINDS_WITH_ANSWERS = "kind IN ('base', 'contribution', 'answer')"


def upgrade() -> None:
    _limit_kinds(KINDS_WITH_ANSWERS)
    op.create_table('requests',
    sa.Column('project', sa.String(), nullable=False),
    sa.Column('id', sa.String(), nullable=False),
    sa.Column('document', sa.Text(), nullable=False),
    sa.Column('policy_version', sa.BigInteger(), nullable=False),
    sa.Column('asked_by', sa.String(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('deadline', sa.DateTime(timezone=True), nullable=False),
    sa.Column('cancelled_at', sa.DateTime(timezone=True), nullable=True),
    sa.ForeignKeyConstraint(['asked_by'], ['tokens.id'], name=op.f('fk_requests_asked_by')),
    sa.ForeignKeyConstraint(['project', 'policy_version'], ['policies.project', 'policies.version'], name=op.f('fk_requests_project_policy_version')),
    sa.ForeignKeyConstraint(['project'], ['projects.id'], name=op.f('fk_requests_project')),
    sa.PrimaryKeyConstraint('project', 'id', name=op.f('pk_requests'))
    )
    op.create_table('asked',
    sa.Column('project', sa.String(), nullable=False),
    sa.Column('request', sa.String(), nullable=False),
    sa.Column('organization', sa.String(), nullable=False),
    sa.Column('answer', sa.Text(), nullable=True),
    sa.Column('upload', sa.String(), nullable=True),
    sa.Column('answered_at', sa.DateTime(timezone=True), nullable=True),
    sa.ForeignKeyConstraint(['organization'], ['organizations.name'], name=op.f('fk_asked_organization')),
    sa.ForeignKeyConstraint(['project', 'request'], ['requests.project', 'requests.id'], name=op.f('fk_asked_project_request')),
    sa.ForeignKeyConstraint(['upload'], ['uploads.id'], name=op.f('fk_asked_upload')),
    sa.PrimaryKeyConstraint('project', 'request', 'organization', name=op.f('pk_asked')),
    sa.UniqueConstraint('upload', name=op.f('uq_asked_upload'))
    )


def downgrade() -> None:
    op.drop_table('asked')
    op.drop_table('requests')
    answers = "SELECT id FROM uploads WHERE kind = 'answer'"
    op.execute(f'DELETE FROM upload_parts WHERE upload IN ({answers})')
    op.execute(f'DELETE FROM upload_files WHERE upload IN ({answers})')
    op.execute("DELETE FROM uploads WHERE kind = 'answer'")
    _limit_kinds(KINDS)


def _limit_kinds(condition: str) -> None:
    with op.batch_alter_table('uploads') as uploads:
        uploads.drop_constraint(op.f('ck_uploads_kind'), type_='check')
        uploads.create_check_constraint(op.f('ck_uploads_kind'), condition)
