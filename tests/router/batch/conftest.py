"""The web client of the HTTP tests."""

from tests.router.http.conftest import web

__all__ = ["web"]
