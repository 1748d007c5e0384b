"""SQL databases: transactions, and what differs between PostgreSQL, MySQL and SQLite."""
