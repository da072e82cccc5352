"""The names and numbers that requests speak of. Every one is a single token of the demo's tokenizer."""

from __future__ import annotations

WORKLOADS = (
    "checkout", "payments", "cart", "orders", "catalog", "login", "profile", "billing", "invoices", "shipping",
    "inventory", "gateway", "proxy", "cache", "mailer", "notifier", "reports", "analytics", "recommender", "pricing",
    "reviews", "frontend", "backend", "uploader", "ledger", "coupons", "chat", "web-api", "auth-api", "order-db",
    "user-db", "fraud-check",
)  # fmt: skip

NAMESPACES = ("prod", "staging", "dev", "qa", "sandbox", "demo", "perf", "edge", "infra", "shop", "ml", "partners")

NODES = ("node-1", "node-2", "node-3", "node-4", "node-5", "node-6", "node-7", "node-8")

VALUES: dict[str, tuple[str, ...]] = {
    "name": WORKLOADS,
    "namespace": NAMESPACES,
    "node": NODES,
    "replicas": ("2", "3", "4", "5", "6", "7", "8", "9", "10", "12"),
    "low": ("1", "2", "3", "4"),
    "high": ("6", "8", "10", "12", "15", "20"),
    "lines": ("20", "50", "100", "200", "300", "500"),
    "port": ("80", "443", "3000", "5432", "6379", "8080", "8443", "9090"),
    "seconds": ("10", "30", "45", "60", "90", "120", "300", "600"),
}
"""What may stand in each slot of a phrasing or command."""
