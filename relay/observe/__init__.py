"""What is told about calls as they end: metrics, access log, spans. Figures and names of closed sets, never content."""
