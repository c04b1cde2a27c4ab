"""Long proofs of one property each, over running gateways: `python -m campaigns.NAME` (docs/campaigns.md)."""
