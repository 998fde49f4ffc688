"""blobs: since when a file is claimed and not named, and since when it is being deleted.

Revision: 0008, after 0007
"""

import sqlalchemy as sa
from alembic import op


revision = '0008'
down_revision = '0007'
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table('blobs') as blobs:
        blobs.add_column(sa.Column('claimed_at', sa.DateTime(timezone=True), nullable=True))
        blobs.add_column(sa.Column('condemned_at', sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table('blobs') as blobs:
        blobs.drop_column('condemned_at')
        blobs.drop_column('claimed_at')
