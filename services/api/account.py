"""The one account there is: whoever holds the admin token."""

from typing import Any, Final

ADMIN_ID: Final = "00000000-0000-0000-0000-000000000002"
ADMIN_NAME: Final = "admin"
ADMIN_ACCOUNT: Final[dict[str, Any]] = {"id": ADMIN_ID, "name": ADMIN_NAME, "email": "admin"}
"""As records and frames show it."""
