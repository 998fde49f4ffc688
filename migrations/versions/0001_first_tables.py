"""first tables.

Revision: 0001, after 
"""

import sqlalchemy as sa
from alembic import op


revision = '0001'
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:

    op.create_table('audit_head',
    sa.Column('id', sa.BigInteger(), autoincrement=False, nullable=False),
    sa.Column('sequence', sa.BigInteger(), nullable=False),
    sa.Column('digest', sa.String(), nullable=False),
    sa.CheckConstraint('id = 1', name=op.f('ck_audit_head_one_row')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_audit_head'))
    )
    op.create_table('audit_log',
    sa.Column('sequence', sa.BigInteger(), autoincrement=False, nullable=False),
    sa.Column('at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('organization', sa.String(), nullable=True),
    sa.Column('token', sa.String(), nullable=True),
    sa.Column('action', sa.String(), nullable=False),
    sa.Column('subject', sa.String(), nullable=False),
    sa.Column('details', sa.Text(), nullable=False),
    sa.Column('previous', sa.String(), nullable=False),
    sa.Column('digest', sa.String(), nullable=False),
    sa.PrimaryKeyConstraint('sequence', name=op.f('pk_audit_log'))
    )
    op.create_table('blobs',
    sa.Column('sha256', sa.String(), nullable=False),
    sa.Column('bytes', sa.BigInteger(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.PrimaryKeyConstraint('sha256', name=op.f('pk_blobs'))
    )
    op.create_table('organizations',
    sa.Column('name', sa.String(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.PrimaryKeyConstraint('name', name=op.f('pk_organizations'))
    )
    op.create_table('uploads',
    sa.Column('id', sa.String(), nullable=False),
    sa.Column('kind', sa.String(), nullable=False),
    sa.Column('project', sa.String(), nullable=False),
    sa.Column('state', sa.String(), nullable=False),
    sa.Column('reason', sa.Text(), nullable=True),
    sa.Column('bytes', sa.BigInteger(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('expires_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('sealed_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('decided_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('withdrawn_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('delete_after', sa.DateTime(timezone=True), nullable=True),
    sa.Column('deleted_at', sa.DateTime(timezone=True), nullable=True),
    sa.CheckConstraint("kind IN ('base', 'contribution')", name=op.f('ck_uploads_kind')),
    sa.CheckConstraint("state IN ('open', 'sealed', 'accepted', 'rejected', 'expired', 'withdrawn')", name=op.f('ck_uploads_state')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_uploads'))
    )
    with op.batch_alter_table('uploads', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_uploads_delete_after'), ['delete_after'], unique=False)
        batch_op.create_index(batch_op.f('ix_uploads_project'), ['project'], unique=False)
        batch_op.create_index(batch_op.f('ix_uploads_state'), ['state'], unique=False)

    op.create_table('workers',
    sa.Column('id', sa.String(), nullable=False),
    sa.Column('host', sa.String(), nullable=False),
    sa.Column('device', sa.String(), nullable=False),
    sa.Column('memory_bytes', sa.BigInteger(), nullable=False),
    sa.Column('version', sa.String(), nullable=False),
    sa.Column('started_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('heartbeat_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('stopped_at', sa.DateTime(timezone=True), nullable=True),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_workers'))
    )
    op.create_table('projects',
    sa.Column('id', sa.String(), nullable=False),
    sa.Column('coordinator', sa.String(), nullable=False),
    sa.Column('base_digest', sa.String(), nullable=False),
    sa.Column('base_manifest', sa.Text(), nullable=False),
    sa.Column('base_upload', sa.String(), nullable=False),
    sa.Column('policy_version', sa.BigInteger(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(['base_upload'], ['uploads.id'], name=op.f('fk_projects_base_upload')),
    sa.ForeignKeyConstraint(['coordinator'], ['organizations.name'], name=op.f('fk_projects_coordinator')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_projects')),
    sa.UniqueConstraint('base_upload', name=op.f('uq_projects_base_upload'))
    )
    with op.batch_alter_table('projects', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_projects_coordinator'), ['coordinator'], unique=False)

    op.create_table('tokens',
    sa.Column('id', sa.String(), nullable=False),
    sa.Column('secret_sha256', sa.String(), nullable=False),
    sa.Column('role', sa.String(), nullable=False),
    sa.Column('organization', sa.String(), nullable=True),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('expires_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('revoked_at', sa.DateTime(timezone=True), nullable=True),
    sa.CheckConstraint("(role = 'operator') = (organization IS NULL)", name=op.f('ck_tokens_organization_by_role')),
    sa.CheckConstraint("role IN ('operator', 'coordinator', 'participant')", name=op.f('ck_tokens_role')),
    sa.ForeignKeyConstraint(['organization'], ['organizations.name'], name=op.f('fk_tokens_organization')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_tokens'))
    )
    with op.batch_alter_table('tokens', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_tokens_organization'), ['organization'], unique=False)

    op.create_table('upload_files',
    sa.Column('upload', sa.String(), nullable=False),
    sa.Column('name', sa.String(), nullable=False),
    sa.Column('position', sa.BigInteger(), nullable=False),
    sa.Column('bytes', sa.BigInteger(), nullable=False),
    sa.Column('sha256', sa.String(), nullable=False),
    sa.Column('part_bytes', sa.BigInteger(), nullable=False),
    sa.Column('part_count', sa.BigInteger(), nullable=False),
    sa.ForeignKeyConstraint(['upload'], ['uploads.id'], name=op.f('fk_upload_files_upload')),
    sa.PrimaryKeyConstraint('upload', 'name', name=op.f('pk_upload_files'))
    )
    with op.batch_alter_table('upload_files', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_upload_files_sha256'), ['sha256'], unique=False)

    op.create_table('participants',
    sa.Column('project', sa.String(), nullable=False),
    sa.Column('organization', sa.String(), nullable=False),
    sa.Column('invited_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('accepted_version', sa.BigInteger(), nullable=True),
    sa.ForeignKeyConstraint(['organization'], ['organizations.name'], name=op.f('fk_participants_organization')),
    sa.ForeignKeyConstraint(['project'], ['projects.id'], name=op.f('fk_participants_project')),
    sa.PrimaryKeyConstraint('project', 'organization', name=op.f('pk_participants'))
    )
    with op.batch_alter_table('participants', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_participants_organization'), ['organization'], unique=False)

    op.create_table('policies',
    sa.Column('project', sa.String(), nullable=False),
    sa.Column('version', sa.BigInteger(), autoincrement=False, nullable=False),
    sa.Column('digest', sa.String(), nullable=False),
    sa.Column('document', sa.Text(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(['project'], ['projects.id'], name=op.f('fk_policies_project')),
    sa.PrimaryKeyConstraint('project', 'version', name=op.f('pk_policies'))
    )
    op.create_table('upload_parts',
    sa.Column('upload', sa.String(), nullable=False),
    sa.Column('file', sa.String(), nullable=False),
    sa.Column('number', sa.BigInteger(), autoincrement=False, nullable=False),
    sa.Column('bytes', sa.BigInteger(), nullable=False),
    sa.Column('sha256', sa.String(), nullable=False),
    sa.Column('received_at', sa.DateTime(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(['upload', 'file'], ['upload_files.upload', 'upload_files.name'], name=op.f('fk_upload_parts_upload_file')),
    sa.PrimaryKeyConstraint('upload', 'file', 'number', name=op.f('pk_upload_parts'))
    )
    op.create_table('acceptances',
    sa.Column('project', sa.String(), nullable=False),
    sa.Column('version', sa.BigInteger(), autoincrement=False, nullable=False),
    sa.Column('organization', sa.String(), nullable=False),
    sa.Column('digest', sa.String(), nullable=False),
    sa.Column('token', sa.String(), nullable=False),
    sa.Column('accepted_at', sa.DateTime(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(['organization'], ['organizations.name'], name=op.f('fk_acceptances_organization')),
    sa.ForeignKeyConstraint(['project', 'version'], ['policies.project', 'policies.version'], name=op.f('fk_acceptances_project_version')),
    sa.ForeignKeyConstraint(['token'], ['tokens.id'], name=op.f('fk_acceptances_token')),
    sa.PrimaryKeyConstraint('project', 'version', 'organization', name=op.f('pk_acceptances'))
    )
    op.create_table('contributions',
    sa.Column('id', sa.String(), nullable=False),
    sa.Column('project', sa.String(), nullable=False),
    sa.Column('organization', sa.String(), nullable=False),
    sa.Column('upload', sa.String(), nullable=False),
    sa.Column('manifest', sa.Text(), nullable=False),
    sa.Column('policy_version', sa.BigInteger(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(['organization'], ['organizations.name'], name=op.f('fk_contributions_organization')),
    sa.ForeignKeyConstraint(['project', 'policy_version'], ['policies.project', 'policies.version'], name=op.f('fk_contributions_project_policy_version')),
    sa.ForeignKeyConstraint(['project'], ['projects.id'], name=op.f('fk_contributions_project')),
    sa.ForeignKeyConstraint(['upload'], ['uploads.id'], name=op.f('fk_contributions_upload')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_contributions')),
    sa.UniqueConstraint('upload', name=op.f('uq_contributions_upload'))
    )
    with op.batch_alter_table('contributions', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_contributions_project_organization'), ['project', 'organization'], unique=False)

    op.create_table('jobs',
    sa.Column('project', sa.String(), nullable=False),
    sa.Column('id', sa.String(), nullable=False),
    sa.Column('submission_digest', sa.String(), nullable=False),
    sa.Column('recipe', sa.Text(), nullable=False),
    sa.Column('policy_version', sa.BigInteger(), nullable=False),
    sa.Column('state', sa.String(), nullable=False),
    sa.Column('stage', sa.String(), nullable=False),
    sa.Column('attempt', sa.BigInteger(), nullable=False),
    sa.Column('done_tasks', sa.BigInteger(), nullable=False),
    sa.Column('total_tasks', sa.BigInteger(), nullable=False),
    sa.Column('done_bytes', sa.BigInteger(), nullable=False),
    sa.Column('total_bytes', sa.BigInteger(), nullable=False),
    sa.Column('rate', sa.Double(), nullable=True),
    sa.Column('error_code', sa.String(), nullable=True),
    sa.Column('error_message', sa.Text(), nullable=True),
    sa.Column('submitted_by', sa.String(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('started_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('finished_at', sa.DateTime(timezone=True), nullable=True),
    sa.CheckConstraint("state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')", name=op.f('ck_jobs_state')),
    sa.ForeignKeyConstraint(['project', 'policy_version'], ['policies.project', 'policies.version'], name=op.f('fk_jobs_project_policy_version')),
    sa.ForeignKeyConstraint(['project'], ['projects.id'], name=op.f('fk_jobs_project')),
    sa.ForeignKeyConstraint(['submitted_by'], ['tokens.id'], name=op.f('fk_jobs_submitted_by')),
    sa.PrimaryKeyConstraint('project', 'id', name=op.f('pk_jobs'))
    )
    with op.batch_alter_table('jobs', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_jobs_state'), ['state'], unique=False)

    op.create_table('attempts',
    sa.Column('project', sa.String(), nullable=False),
    sa.Column('job', sa.String(), nullable=False),
    sa.Column('number', sa.BigInteger(), autoincrement=False, nullable=False),
    sa.Column('workflow', sa.String(), nullable=False),
    sa.Column('state', sa.String(), nullable=False),
    sa.Column('worker', sa.String(), nullable=True),
    sa.Column('error_code', sa.String(), nullable=True),
    sa.Column('error_message', sa.Text(), nullable=True),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('started_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('finished_at', sa.DateTime(timezone=True), nullable=True),
    sa.CheckConstraint("state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')", name=op.f('ck_attempts_state')),
    sa.ForeignKeyConstraint(['project', 'job'], ['jobs.project', 'jobs.id'], name=op.f('fk_attempts_project_job')),
    sa.PrimaryKeyConstraint('project', 'job', 'number', name=op.f('pk_attempts')),
    sa.UniqueConstraint('workflow', name=op.f('uq_attempts_workflow'))
    )
    op.create_table('job_contributions',
    sa.Column('project', sa.String(), nullable=False),
    sa.Column('job', sa.String(), nullable=False),
    sa.Column('contribution', sa.String(), nullable=False),
    sa.Column('organization', sa.String(), nullable=False),
    sa.Column('weight', sa.Text(), nullable=False),
    sa.ForeignKeyConstraint(['contribution'], ['contributions.id'], name=op.f('fk_job_contributions_contribution')),
    sa.ForeignKeyConstraint(['organization'], ['organizations.name'], name=op.f('fk_job_contributions_organization')),
    sa.ForeignKeyConstraint(['project', 'job'], ['jobs.project', 'jobs.id'], name=op.f('fk_job_contributions_project_job')),
    sa.PrimaryKeyConstraint('project', 'job', 'contribution', name=op.f('pk_job_contributions'))
    )
    with op.batch_alter_table('job_contributions', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_job_contributions_contribution'), ['contribution'], unique=False)

    op.create_table('job_log',
    sa.Column('project', sa.String(), nullable=False),
    sa.Column('job', sa.String(), nullable=False),
    sa.Column('sequence', sa.BigInteger(), autoincrement=False, nullable=False),
    sa.Column('at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('attempt', sa.BigInteger(), nullable=False),
    sa.Column('message', sa.Text(), nullable=False),
    sa.ForeignKeyConstraint(['project', 'job'], ['jobs.project', 'jobs.id'], name=op.f('fk_job_log_project_job')),
    sa.PrimaryKeyConstraint('project', 'job', 'sequence', name=op.f('pk_job_log'))
    )
    op.create_table('models',
    sa.Column('project', sa.String(), nullable=False),
    sa.Column('id', sa.String(), nullable=False),
    sa.Column('attempt', sa.BigInteger(), nullable=False),
    sa.Column('bytes', sa.BigInteger(), nullable=False),
    sa.Column('receipt', sa.Text(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('deleted_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('delete_after', sa.DateTime(timezone=True), nullable=True),
    sa.ForeignKeyConstraint(['project', 'id'], ['jobs.project', 'jobs.id'], name=op.f('fk_models_project_id')),
    sa.PrimaryKeyConstraint('project', 'id', name=op.f('pk_models'))
    )
    with op.batch_alter_table('models', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_models_delete_after'), ['delete_after'], unique=False)

    op.create_table('model_files',
    sa.Column('project', sa.String(), nullable=False),
    sa.Column('model', sa.String(), nullable=False),
    sa.Column('name', sa.String(), nullable=False),
    sa.Column('position', sa.BigInteger(), nullable=False),
    sa.Column('bytes', sa.BigInteger(), nullable=False),
    sa.Column('sha256', sa.String(), nullable=False),
    sa.ForeignKeyConstraint(['project', 'model'], ['models.project', 'models.id'], name=op.f('fk_model_files_project_model')),
    sa.PrimaryKeyConstraint('project', 'model', 'name', name=op.f('pk_model_files'))
    )
    with op.batch_alter_table('model_files', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_model_files_sha256'), ['sha256'], unique=False)




def downgrade() -> None:

    with op.batch_alter_table('model_files', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_model_files_sha256'))

    op.drop_table('model_files')
    with op.batch_alter_table('models', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_models_delete_after'))

    op.drop_table('models')
    op.drop_table('job_log')
    with op.batch_alter_table('job_contributions', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_job_contributions_contribution'))

    op.drop_table('job_contributions')
    op.drop_table('attempts')
    with op.batch_alter_table('jobs', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_jobs_state'))

    op.drop_table('jobs')
    with op.batch_alter_table('contributions', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_contributions_project_organization'))

    op.drop_table('contributions')
    op.drop_table('acceptances')
    op.drop_table('upload_parts')
    op.drop_table('policies')
    with op.batch_alter_table('participants', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_participants_organization'))

    op.drop_table('participants')
    with op.batch_alter_table('upload_files', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_upload_files_sha256'))

    op.drop_table('upload_files')
    with op.batch_alter_table('tokens', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_tokens_organization'))

    op.drop_table('tokens')
    with op.batch_alter_table('projects', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_projects_coordinator'))

    op.drop_table('projects')
    op.drop_table('workers')
    with op.batch_alter_table('uploads', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_uploads_state'))
        batch_op.drop_index(batch_op.f('ix_uploads_project'))
        batch_op.drop_index(batch_op.f('ix_uploads_delete_after'))

    op.drop_table('uploads')
    op.drop_table('organizations')
    op.drop_table('blobs')
    op.drop_table('audit_log')
    op.drop_table('audit_head')

