"""The first schema: sites, invitations, runs, rounds, attempts, participations, models, charges, metrics, incidents.

What each table, constraint and index is for is written in `coordinator.ledger.tables`.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
STATE = sa.String(16)
FLOWER_ID = sa.String(20)
RUN_ID = sa.String(64)
SHA256 = sa.String(64)
SITE = sa.String(40)


def upgrade() -> None:
    _sites()
    _runs()
    _rounds()
    _participations()
    _results()


def downgrade() -> None:
    for table in (
        "incidents",
        "metrics",
        "budget_charges",
        "participations",
        "attempts",
        "rounds",
        "model_versions",
        "runs",
        "invitations",
        "sites",
    ):
        op.drop_table(table)


def _sites() -> None:
    op.create_table(
        "sites",
        sa.Column("name", SITE, nullable=False),
        sa.Column("signing_key", sa.String(64), nullable=False),
        sa.Column("node_key", sa.String(512), nullable=False),
        sa.Column("certificate_sha256", SHA256, nullable=False),
        sa.Column("flower_node_id", FLOWER_ID, nullable=True),
        sa.Column("enrolled_at", TIME, nullable=False),
        sa.Column("revoked_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("name", name="pk_sites"),
        sa.UniqueConstraint("certificate_sha256", name="uq_sites_certificate_sha256"),
        sa.UniqueConstraint("flower_node_id", name="uq_sites_flower_node_id"),
        sa.UniqueConstraint("node_key", name="uq_sites_node_key"),
        sa.UniqueConstraint("signing_key", name="uq_sites_signing_key"),
    )
    op.create_table(
        "invitations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("site", SITE, nullable=False),
        sa.Column("token_sha256", SHA256, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("used_at", TIME, nullable=True),
        sa.CheckConstraint("length(token_sha256) = 64", name="ck_invitations_token_is_hashed"),
        sa.PrimaryKeyConstraint("id", name="pk_invitations"),
        sa.UniqueConstraint("token_sha256", name="uq_invitations_token_sha256"),
    )
    op.create_index("ix_invitations_site", "invitations", ["site"])


def _runs() -> None:
    op.create_table(
        "runs",
        sa.Column("run_id", RUN_ID, nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("state", STATE, nullable=False),
        sa.Column("rounds", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("flower_run_id", FLOWER_ID, nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("finished_at", TIME, nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(finished_at IS NULL) = (state IN ('requested', 'running'))", name="ck_runs_end"
        ),
        sa.CheckConstraint(
            "state IN ('requested', 'running', 'finished', 'failed', 'cancelled')",
            name="ck_runs_state",
        ),
        sa.CheckConstraint("rounds >= 1 AND epoch >= 0", name="ck_runs_counts"),
        sa.PrimaryKeyConstraint("run_id", name="pk_runs"),
    )
    op.create_index("ix_runs_state_created_at", "runs", ["state", "created_at"])
    op.create_table(
        "model_versions",
        sa.Column("run_id", RUN_ID, nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("sha256", SHA256, nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("parent_sha256", SHA256, nullable=True),
        sa.Column("optimiser_state_sha256", SHA256, nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.CheckConstraint("round >= 0 AND bytes >= 1", name="ck_model_versions_counts"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name="fk_model_versions_run_id"),
        sa.PrimaryKeyConstraint("run_id", "round", name="pk_model_versions"),
        sa.UniqueConstraint(
            "run_id", "round", "sha256", name="uq_model_versions_run_id_round_sha256"
        ),
    )
    op.create_index("ix_model_versions_sha256", "model_versions", ["sha256"])


def _rounds() -> None:
    op.create_table(
        "rounds",
        sa.Column("run_id", RUN_ID, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("state", STATE, nullable=False),
        sa.Column("model_sha256", SHA256, nullable=True),
        sa.Column("committed_at", TIME, nullable=True),
        sa.CheckConstraint(
            "(state = 'committed') = (committed_at IS NOT NULL)", name="ck_rounds_time"
        ),
        sa.CheckConstraint(
            "(state = 'committed') = (model_sha256 IS NOT NULL)", name="ck_rounds_model"
        ),
        sa.CheckConstraint(
            "state IN ('planned', 'open', 'aggregating', 'committed', 'aborted')",
            name="ck_rounds_state",
        ),
        sa.CheckConstraint("number >= 1", name="ck_rounds_number"),
        sa.ForeignKeyConstraint(
            ["run_id", "number", "model_sha256"],
            ["model_versions.run_id", "model_versions.round", "model_versions.sha256"],
            name="fk_rounds_model",
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name="fk_rounds_run_id"),
        sa.PrimaryKeyConstraint("run_id", "number", name="pk_rounds"),
    )
    op.create_table(
        "attempts",
        sa.Column("run_id", RUN_ID, nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("state", STATE, nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("plan", sa.LargeBinary(), nullable=False),
        sa.Column("plan_signature", sa.LargeBinary(), nullable=False),
        sa.Column("plan_sha256", SHA256, nullable=False),
        sa.Column("cohort", sa.Text(), nullable=False),
        sa.Column("quorum", sa.Integer(), nullable=False),
        sa.Column("opened_at", TIME, nullable=True),
        sa.Column("deadline", TIME, nullable=False),
        sa.Column("closed_at", TIME, nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(closed_at IS NULL) = (state IN ('planned', 'open', 'aggregating'))",
            name="ck_attempts_end",
        ),
        sa.CheckConstraint(
            "state IN ('planned', 'open', 'aggregating', 'committed', 'aborted')",
            name="ck_attempts_state",
        ),
        sa.CheckConstraint(
            "attempt >= 1 AND quorum >= 1 AND epoch >= 1", name="ck_attempts_counts"
        ),
        sa.ForeignKeyConstraint(
            ["run_id", "round"], ["rounds.run_id", "rounds.number"], name="fk_attempts_round"
        ),
        sa.PrimaryKeyConstraint("run_id", "round", "attempt", name="pk_attempts"),
    )


def _participations() -> None:
    op.create_table(
        "participations",
        sa.Column("run_id", RUN_ID, nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("site", SITE, nullable=False),
        sa.Column("state", STATE, nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("bytes_sent", sa.BigInteger(), nullable=False),
        sa.Column("bytes_received", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.CheckConstraint(
            "state IN ('asked', 'joined', 'sealed', 'counted', 'lost', 'refused')",
            name="ck_participations_state",
        ),
        sa.CheckConstraint(
            "bytes_sent >= 0 AND bytes_received >= 0 AND seconds >= 0",
            name="ck_participations_counts",
        ),
        sa.ForeignKeyConstraint(
            ["run_id", "round", "attempt"],
            ["attempts.run_id", "attempts.round", "attempts.attempt"],
            name="fk_participations_attempt",
        ),
        sa.ForeignKeyConstraint(["site"], ["sites.name"], name="fk_participations_site"),
        sa.PrimaryKeyConstraint("run_id", "round", "attempt", "site", name="pk_participations"),
    )
    op.create_index("ix_participations_site", "participations", ["site"])
    op.create_table(
        "budget_charges",
        sa.Column("run_id", RUN_ID, nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("site", SITE, nullable=False),
        sa.Column("epsilon", sa.Double(), nullable=False),
        sa.Column("delta", sa.Double(), nullable=False),
        sa.Column("unit", sa.String(40), nullable=False),
        sa.Column("adjacency", sa.String(40), nullable=False),
        sa.Column("events", sa.Text(), nullable=False),
        sa.Column("recorded_at", TIME, nullable=False),
        sa.CheckConstraint(
            "epsilon >= 0 AND delta >= 0 AND delta < 1", name="ck_budget_charges_range"
        ),
        sa.ForeignKeyConstraint(
            ["run_id", "round", "attempt", "site"],
            [
                "participations.run_id",
                "participations.round",
                "participations.attempt",
                "participations.site",
            ],
            name="fk_budget_charges_participation",
        ),
        sa.PrimaryKeyConstraint("run_id", "round", "attempt", "site", name="pk_budget_charges"),
    )


def _results() -> None:
    op.create_table(
        "metrics",
        sa.Column("run_id", RUN_ID, nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(80), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("released_with", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id", "round"], ["rounds.run_id", "rounds.number"], name="fk_metrics_round"
        ),
        sa.PrimaryKeyConstraint("run_id", "round", "name", name="pk_metrics"),
    )
    op.create_table(
        "incidents",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("run_id", RUN_ID, nullable=True),
        sa.Column("round", sa.Integer(), nullable=True),
        sa.Column("site", SITE, nullable=True),
        sa.Column("kind", sa.String(80), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_incidents"),
    )
    op.create_index("ix_incidents_run_id", "incidents", ["run_id"])
