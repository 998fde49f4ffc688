"""part_offers: which bytes a part may have that is put into the store directly.

Revision: 0009, after 0008
"""

import sqlalchemy as sa
from alembic import op


revision = '0009'
down_revision = '0008'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        'part_offers',
        sa.Column('upload', sa.String(), nullable=False),
        sa.Column('file', sa.String(), nullable=False),
        sa.Column('number', sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column('sha256', sa.String(), nullable=False),
        sa.Column('offered_at', sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(['upload', 'file'], ['upload_files.upload', 'upload_files.name'], name=op.f('fk_part_offers_upload_file')),
        sa.PrimaryKeyConstraint('upload', 'file', 'number', name=op.f('pk_part_offers')),
    )


def downgrade() -> None:
    op.drop_table('part_offers')
