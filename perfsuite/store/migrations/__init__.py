"""Alembic's migrations of the catalog: env.py runs them, versions/ has one file for each schema."""
