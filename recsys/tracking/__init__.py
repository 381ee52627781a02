"""Reporting to MLflow."""
