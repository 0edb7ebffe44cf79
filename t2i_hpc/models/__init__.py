"""Networks only; they know nothing but torch (and what ranks exchange, for batch norm)."""
