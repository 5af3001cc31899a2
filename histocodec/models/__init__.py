"""Models: what their files hold, their networks, and how those are evaluated."""
